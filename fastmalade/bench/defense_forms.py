"""The ways to run one defence, of which the fastest is timed, and the device that it runs on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fastmalade.bench.timing import Call, interleaved
from fastmalade.defenses import MagNet
from fastmalade.defenses.base import Defense
from fastmalade.defenses.purifier import Purifier
from fastmalade.executor import GraphExecutor
from fastmalade.executor.capture import Capture, CudaCapture

TOLERANCE = 2e-3
GRAPH = "graph"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run takes place.

    Attributes:
        device: of images and networks.
        synchronize: waits until the device has done what it was given; every timed call ends with it.
        capture: how calls become CUDA graphs; None where there are none.
    """

    device: torch.device
    synchronize: Callable[[], object] | None = None
    capture: Capture | None = None

    def call(self, defense: Defense, images: Tensor) -> Call:
        """A call that gives the purified images once they are there."""
        return self._finished(partial(_purify, defense, images))

    def graph(self, defense: Defense, images: Tensor) -> Call:
        """The same as a CUDA graph, captured now.

        Raises:
            GraphCaptureError: the defence cannot be captured; the message says why.
        """
        executor = GraphExecutor.of_defense(defense, buckets=(len(images),), capture=self.capture)
        call = self._finished(partial(executor, images, seed=0))
        call()
        return call

    def _finished(self, call: Call) -> Call:
        wait = self.synchronize
        if wait is None:
            return call

        def finished() -> object:
            result = call()
            wait()
            return result

        return finished


def place(device: str) -> Place:
    """The place of a device's name.

    Raises:
        ValueError: another name than cpu or cuda, or torch sees no CUDA device.
    """
    if device == "cpu":
        return Place(torch.device("cpu"))
    if device != "cuda":
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError("device: expected one that PyTorch can use, got cuda, and it sees no CUDA device")
    return Place(torch.device("cuda", torch.cuda.current_device()), torch.cuda.synchronize, CudaCapture())


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Convolutions on a GPU take TF32 operands unless told otherwise; all defences are timed in the same arithmetic."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def forms(defense: Defense, *, compiled: bool) -> dict[str, Defense]:
    """Ways to run the same defence in torch: the comparison is with its best.

    MALADE and MagNet have one form; they choose their backend themselves.
    """
    if isinstance(defense, (Purifier, MagNet)):
        return {"": defense}
    found = {"eager": defense}
    for name in ("generator", "autoencoder"):
        network = getattr(defense, name, None)
        if network is None:
            continue
        if any(parameter.ndim == 4 for parameter in network.parameters()):
            found["channels last"] = _with(defense, name, copy.deepcopy(network).to(memory_format=torch.channels_last))
        if compiled:
            # Each cell compiles its own networks from the same code; the compiler keeps a limited number of them and
            # then gives up and runs eagerly.
            torch.compiler.reset()
            found["compiled"] = _with(defense, name, _Compiled(network))
    return found


def fastest(
    defense: Defense, images: Tensor, where: Place, *, compiled: bool, seconds: float
) -> tuple[str, Call, dict[str, str]]:
    """The fastest way to run a defence, found with two steps, which cost all of them alike.

    Ways are its forms, and each of them as a CUDA graph where the device has graphs.

    Args:
        defense: with networks on the device, as ``images`` (B, C, H, W).
        where: the device.
        compiled: also try its network through ``torch.compile``.
        seconds: of measuring for each way.

    Returns:
        Name of the way, a call that purifies all images, and why ways were refused, by name.

    Raises:
        ValueError: a way that does not give what the eager form gives for the same seed.
        Exception: the eager form's own, and on the CPU that of any form.
    """
    candidates = forms(defense, compiled=compiled)
    ways = [(name, False) for name in candidates]
    ways += [(name, True) for name in candidates if where.capture is not None]
    refused: dict[str, str] = {}

    def prepared(way: tuple[str, bool], n_steps: int | None) -> Call:
        form = candidates[way[0]] if n_steps is None else _with_steps(candidates[way[0]], n_steps)
        return where.graph(form, images) if way[1] else where.call(form, images)

    if len(ways) == 1:
        return ways[0][0], prepared(ways[0], None), refused
    calls: dict[tuple[str, bool], Call] = {}
    expected = None
    for way in ways:
        try:
            call = prepared(way, 2)
            result = call()
        except Exception as error:
            # On a GPU a compiler may be missing, and a graph may not hold what eager torch does.
            if expected is None or where.capture is None:
                raise
            refused[_label(way)] = f"{type(error).__name__}: {error}"
            continue
        assert isinstance(result, Tensor)
        expected = result if expected is None else expected
        difference = float((result - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{_label(way)}: expected the images of the eager form within {TOLERANCE}, got {difference:g}"
            )
        calls[way] = call
    screened = interleaved({_label(way): call for way, call in calls.items()}, len(images), seconds=seconds)
    best = min(calls, key=lambda way: screened[_label(way)].low)
    return _label(best), prepared(best, None), refused


def _label(way: tuple[str, bool]) -> str:
    name, captured = way
    return ", ".join(part for part in (name, GRAPH if captured else "") if part)


def _purify(defense: Defense, images: Tensor) -> Tensor:
    with torch.no_grad():
        return defense(images, seed=0)


def _with_steps(defense: Defense, n_steps: int) -> Defense:
    """A copy with another number of steps; itself where it has none."""
    if isinstance(defense, MagNet):
        return defense
    short = copy.copy(defense)
    if isinstance(short, Purifier):
        short.chain = short.chain.replace(n_steps=n_steps)
    else:
        short.n_steps = n_steps  # type: ignore[assignment]
    return short


def _with(defense: Defense, name: str, network: nn.Module) -> Defense:
    twin = copy.copy(defense)
    # A shallow copy shares the table of submodules, which is about to change.
    twin._modules = dict(defense._modules)
    setattr(twin, name, network)
    return twin


class _Compiled(nn.Module):
    """A network through ``torch.compile`` that still has the attributes of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.compiled = torch.compile(network, dynamic=False)
        for name in ("latent_dim", "out_channels", "image_size", "in_channels"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.compiled(x)
