"""``fastmalade bench defenses``: time per image of MALADE and of its rivals, taking turns in one run."""

from __future__ import annotations

import copy
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmalade
from fastmalade import backends
from fastmalade.bench import machine
from fastmalade.bench.runner import SCREENING_SECONDS, Report
from fastmalade.bench.timing import interleaved, summarise
from fastmalade.data import embedded_digits
from fastmalade.defense import Defense
from fastmalade.defenses import Apudae, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.files import replacing
from fastmalade.models.gan import GanGenerator
from fastmalade.purifier import Purifier

FORMAT = 1
PAPER_SECONDS = {10: (0.008, 0.043), 25: (0.016, 0.070), 50: (0.028, 0.137)}
"""N = L: seconds of MALADE and of Defense-GAN with R = 1 on a TITAN V (000 Table 6)."""
GAN_STEPS = 200
TOLERANCE = 2e-3
_MALADE, _RIVAL = "malade native", "defense-gan R=1"


@dataclasses.dataclass(frozen=True)
class DefenseSettings:
    """Choices of a run.

    Attributes:
        batches: images per call.
        steps: values of N and L.
        restarts: values of Defense-GAN's R.
        threads: numbers of threads, each a part of the run that is held to as many processors.
        seconds: budget of each defence in each cell.
        longest: calls that take longer, in seconds, are timed once and not in turns.
        compiled: also try each rival with its network through ``torch.compile``.
        contenders: names, or none for all.

    Raises:
        ValueError: a count that is not positive, nothing to do, or an unknown name.
    """

    batches: tuple[int, ...] = (1, 64)
    steps: tuple[int, ...] = (10, 25, 50)
    restarts: tuple[int, ...] = (1, 10)
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 5.0
    longest: float = 20.0
    compiled: bool = True
    contenders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batches", "steps", "restarts", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name}: expected at least one number, each at least 1, got {values}")
        if not (self.seconds >= 0 and self.longest > 0):
            raise ValueError(f"seconds, longest: expected >= 0 and > 0, got {self.seconds} and {self.longest}")
        unknown = set(self.contenders) - set(self.names())
        if unknown:
            raise ValueError(f"contenders: expected any of {', '.join(self.names())}, got {', '.join(sorted(unknown))}")

    def names(self) -> list[str]:
        """All contenders, in the order of the tables."""
        searches = [f"{gan} R={r}" for gan in ("defense-gan", "defense-gan width 64") for r in self.restarts]
        return [_MALADE, "malade eager", "magnet", *searches, "inc", "dip-inc", "apudae", "apudae table 8"]

    def chosen(self) -> list[str]:
        """The contenders of this run."""
        return [name for name in self.names() if name in self.contenders] if self.contenders else self.names()


def build(name: str, steps: int) -> Defense:
    """A contender with a number of steps.

    "defense-gan" is the shipped generator, "defense-gan width 64" one of the published size with untrained weights: the
    arithmetic is the same. "apudae" is the autoencoder of 003 Table 1, "apudae table 8" that of MALADE. "dip-inc" never
    stops early.

    Raises:
        ValueError: an unknown name.
    """
    if name in (_MALADE, "malade eager"):
        purifier = Purifier.from_pretrained("malade-mnist", backend="cpu" if name == _MALADE else "torch")
        purifier.chain = purifier.chain.replace(n_steps=steps)
        return purifier
    if name == "magnet":
        return MagNet.from_pretrained("magnet-mnist")
    if name.startswith("defense-gan"):
        restarts = int(name.rpartition("=")[2])
        generator = _paper_generator() if "width 64" in name else _network("defense-gan-mnist", "generator")
        return DefenseGan(generator, n_steps=steps, n_restarts=restarts).requires_grad_(False).eval()
    if name == "inc":
        return InvertAndClassify(_network("inc-mnist", "generator"), n_steps=steps).eval()
    if name == "dip-inc":
        return DeepPrior(n_steps=steps, stop_error=0.0).eval()
    if name == "apudae":
        return Apudae(_network("apudae-mnist", "autoencoder"), n_steps=steps).eval()
    if name == "apudae table 8":
        return Apudae(_network("magnet-mnist", "autoencoder"), n_steps=steps).eval()
    raise ValueError(f"contender: expected another name, got {name!r}")


def forms(defense: Defense, *, compiled: bool) -> dict[str, Defense]:
    """Ways to run the same defence in torch, of which the fastest is timed: the comparison is with its best.

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
            # Each cell compiles networks of its own from the same code, of which the compiler keeps only so many before
            # it gives up and runs eagerly.
            torch.compiler.reset()
            found["compiled"] = _with(defense, name, _Compiled(network))
    return found


def run(settings: DefenseSettings, *, output: Path | None = None, report: Report | None = None) -> dict[str, Any]:
    """Time all contenders.

    Every form is verified first: it must give what the eager form gives for the same seed, after two steps. In a cell
    (threads, batch, steps) all contenders take turns.

    Args:
        settings: what to measure.
        output: JSON file, rewritten after every cell.
        report: told about progress.

    Returns:
        The result, as written to ``output``: JSON values, times in microseconds per image.

    Raises:
        ValueError: settings that cannot be met on this machine.
        BackendUnavailableError: the native kernels are not built here.
    """
    state: dict[str, Any] = {
        "kind": "fastmalade bench defenses",
        "format": FORMAT,
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": dataclasses.asdict(settings),
        "machine": machine.describe(),
        "versions": {
            "fastmalade": fastmalade.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "commit": machine.commit(),
        "warnings": machine.warnings(),
        "cells": [],
    }
    names = settings.chosen()
    if _MALADE in names:
        backends.resolve("cpu", device=torch.device("cpu"), dtype=torch.float32)
    # Defense-GAN's own number of steps, for it alone.
    counts = [*settings.steps, *([GAN_STEPS] if GAN_STEPS not in settings.steps else [])]
    cells = [(threads, batch, n) for threads in settings.threads for batch in settings.batches for n in counts]
    for done, (threads, batch, steps) in enumerate(cells):
        if report is not None:
            report(f"{threads} threads, batch {batch}, N = L = {steps}", done / len(cells))
        wanted = [n for n in names if steps in settings.steps or n.startswith("defense-gan")]
        if wanted:
            with machine.pinned(threads):
                state["cells"] += _cell(wanted, steps, batch, threads, settings)
        _save(state, output)
    state["complete"] = True
    _save(state, output)
    return state


def ratios(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Defense-GAN with R = 1 against native MALADE at N = L, by cell, beside the paper's own ratio."""
    medians = {
        (c["contender"], c["threads"], c["batch"], c["steps"]): c["us_per_image"]["median"] for c in result["cells"]
    }
    found = []
    for (name, threads, batch, steps), median in medians.items():
        own = medians.get((_MALADE, threads, batch, steps))
        if name not in (_RIVAL, "defense-gan width 64 R=1") or own is None:
            continue
        seconds = PAPER_SECONDS.get(steps)
        found.append(
            {
                "rival": name,
                "threads": threads,
                "batch": batch,
                "steps": steps,
                "ratio": median / own,
                "paper": None if seconds is None else seconds[1] / seconds[0],
            }
        )
    return found


def _cell(
    names: Sequence[str], steps: int, batch: int, threads: int, settings: DefenseSettings
) -> list[dict[str, Any]]:
    images = _images(batch)
    calls: dict[str, Callable[[], object]] = {}
    cells: dict[str, dict[str, Any]] = {}
    for name in names:
        defense = build(name, steps)
        form, chosen = _fastest(defense, images, settings.compiled)
        cost = defense.cost(batch)
        cells[name] = {
            "contender": name,
            "threads": threads,
            "batch": batch,
            "steps": steps,
            "form": form,
            "flops_per_image": cost.flops // batch,
            "forward_evaluations_per_image": cost.forward_evaluations // batch,
            "gradient_evaluations_per_image": cost.gradient_evaluations // batch,
        }
        call = partial(_purify, chosen, images)
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        if seconds > settings.longest:
            cells[name]["us_per_image"] = dataclasses.asdict(summarise([seconds], batch, 1))
        else:
            calls[name] = call
    if calls:
        for name, summary in interleaved(calls, batch, seconds=settings.seconds).items():
            cells[name]["us_per_image"] = dataclasses.asdict(summary)
    return list(cells.values())


def _fastest(defense: Defense, images: Tensor, compiled: bool) -> tuple[str, Defense]:
    """Name and defence of the fastest form, found with two steps, which cost all forms alike."""
    candidates = forms(defense, compiled=compiled)
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    short = {name: copy.copy(form) for name, form in candidates.items()}
    for form in short.values():
        form.n_steps = 2  # type: ignore[assignment]
    expected = _purify(short["eager"], images)
    for name, form in short.items():
        difference = float((_purify(form, images) - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(f"{name}: expected the images of the eager form within {TOLERANCE}, got {difference:g}")
    calls = {name: partial(_purify, form, images) for name, form in short.items()}
    screened = interleaved(calls, len(images), seconds=SCREENING_SECONDS)
    best = min(screened, key=lambda name: screened[name].low)
    return best, candidates[best]


def _purify(defense: Defense, images: Tensor) -> Tensor:
    with torch.no_grad():
        return defense(images, seed=0)


def _images(batch: int) -> Tensor:
    digits = embedded_digits()[0].astype(np.float32)[:, None] / 255
    return torch.from_numpy(np.ascontiguousarray(np.resize(digits, (batch, 1, 28, 28))))


def _network(name: str, part: str) -> nn.Module:
    network = getattr(Defense.from_pretrained(name), part)
    assert isinstance(network, nn.Module)
    return network


def _paper_generator() -> GanGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GanGenerator(width=64)


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


def _save(state: dict[str, Any], output: Path | None) -> None:
    if output is None:
        return
    with replacing(output) as partial_file:
        partial_file.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
