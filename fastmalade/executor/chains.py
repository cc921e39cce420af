"""What is captured for a defence or a defended classifier, when a capture has gone stale, and what ``purify`` uses."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.backends.values import Execution, NoiseSource
from fastmalade.chain.observers import is_unobserved
from fastmalade.executor.capture import Capture, GraphCaptureError
from fastmalade.executor.graphs import Function, GraphExecutor
from fastmalade.models.autoencoder import is_native_autoencoder
from fastmalade.seeds import check_seed, signed64

if TYPE_CHECKING:
    from fastmalade.chain.config import ChainConfig
    from fastmalade.defenses.base import Defense
    from fastmalade.defenses.defended import DefendedClassifier
    from fastmalade.defenses.purifier import Purifier

_READS_SEEDS_ON_THE_DEVICE = ("cuda", "triton", "torch")
_PLAIN = (int, float, bool, str, type(None), tuple)
_kept: weakref.WeakKeyDictionary[Any, dict[Hashable, GraphExecutor]] = weakref.WeakKeyDictionary()
_refused: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def graph_backend(requested: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend inside a graph: one that reads its seed from device memory when its kernels run.

    Raises as ``backends.resolve``, and BackendUnavailableError for a request that no graph can hold.
    """
    name = backends.resolve(requested, device=device, dtype=dtype)
    if name in _READS_SEEDS_ON_THE_DEVICE:
        return name
    if requested is not None:
        able = ", ".join(_READS_SEEDS_ON_THE_DEVICE)
        raise backends.BackendUnavailableError(f"backend: expected one of {able} in a CUDA graph, got {requested!r}")
    usable = backends.available()["triton"] is None and device.type == "cuda" and dtype == torch.float32
    return "triton" if usable else "torch"


def purifier_function(purifier: Purifier, config: ChainConfig | None = None, backend: str | None = None) -> Function:
    """The chain of a purifier, by default with its own settings, as the executor calls it."""
    # Not the purifier itself: the executors that purify keeps must not keep alive what they are kept for.
    autoencoder, value_range, precision = purifier.autoencoder, purifier.value_range, purifier.precision
    config, backend = config or purifier.chain, backend or purifier.backend
    from fastmalade.defenses.purifier import run_chain

    def function(images: Tensor, seed_bits: Tensor, ids: Tensor) -> Tensor:
        name = graph_backend(backend, images.device, images.dtype)
        how, noise = Execution(name, None, precision), NoiseSource(seed_bits, ids)
        return run_chain(images, autoencoder, config, value_range, noise, how, gradients=False)

    return function


def defense_function(defense: Defense) -> Function:
    """Any defence as the executor calls it: its iteration is torch code that reads its noise by the seed's bits.

    Raises:
        TypeError: something else than a Defense, whose randomness is unknown: a graph would replay it.
    """
    from fastmalade.defenses.base import Defense
    from fastmalade.defenses.purifier import Purifier

    if isinstance(defense, Purifier):
        return purifier_function(defense)
    if not isinstance(defense, Defense):
        raise TypeError(f"executor: expected a fastmalade.Defense, got {type(defense).__name__}")
    return defense.forward_from_device


def classifier_function(defended: DefendedClassifier) -> Function:
    """Defence, classifier and vote of a defended classifier as the executor calls them.

    Raises:
        TypeError: see :func:`defense_function`.
    """
    purify = defense_function(defended.purifier)
    fixed = None if defended.seed is None else signed64(check_seed(defended.seed))

    def function(images: Tensor, seed_bits: Tensor, ids: Tensor) -> Tensor:
        if fixed is not None:
            seed_bits = torch.full_like(seed_bits, fixed)
        images, ids = defended._chains_of(images, ids)
        return defended._join(defended.classifier(purify(images, seed_bits, ids)))

    return function


def fingerprint(model: nn.Module | Callable[..., Any]) -> Hashable:
    """What a capture of a model has frozen: addresses of its tensors, modes, plain attributes, torch's own modes.

    An attribute that is neither a tensor of the module nor a plain value or a frozen dataclass (a list, an object) is
    not looked into: after changing such a one call ``GraphExecutor.clear``.
    """
    cuda = torch.backends.cuda.matmul
    modes = (
        torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, cuda.allow_tf32,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        return modes, id(model)
    tensors = (*model.parameters(), *model.buffers())
    facts = []
    for module in model.modules():
        plain = (item for item in vars(module).items() if not item[0].startswith("_") and _is_plain(item[1]))
        facts.append((type(module), tuple((name, repr(value)) for name, value in plain)))
    return modes, tuple((t.data_ptr(), tuple(t.shape), t.dtype) for t in tensors), tuple(facts)


def _is_plain(value: object) -> bool:
    frozen = getattr(type(value), "__dataclass_params__", None)
    return isinstance(value, _PLAIN) or bool(frozen and frozen.frozen)


def why_not_captured(purifier: Purifier, images: Tensor, capture: Capture | None = None) -> str | None:
    """None where ``purify`` may run this model through a graph without being asked to, else why it does not."""
    model = purifier.autoencoder
    if images.device.type != ("cuda" if capture is None else capture.device_type):
        return f"expected images on a CUDA device, got {images.device}"
    if not isinstance(model, nn.Module):
        return "r(x) is no module: what it depends on cannot be seen"
    if any(module.training for module in model.modules()):
        return "the model is in training mode: its forward pass may change it"
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if hooked or nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "the model has forward hooks, which a graph would not call"
    if not is_unobserved(images, *model.parameters(), recorded=False):
        return "a mode, a transformation, a compiler or a profiler is active, or a tensor is no plain one"
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return "the caller captures a graph itself"
    return _refused.get(purifier)


def purify_in_graph(
    purifier: Purifier,
    images: Tensor,
    config: ChainConfig,
    backend: str | None,
    *,
    seed: int | None,
    sample_ids: Any,
    capture: Capture | None = None,
) -> Tensor | None:
    """The purified images, or None where no graph is used (:func:`why_not_captured`, and native whole chains).

    A model that cannot be captured is reported by one RuntimeWarning and runs step by step from then on.
    """
    if why_not_captured(purifier, images, capture) is not None or config.n_steps == 0 or images.shape[0] == 0:
        return None
    chosen = backends.resolve(backend, device=images.device, dtype=images.dtype)
    native = is_native_autoencoder(purifier.autoencoder)
    if native and chosen == "cuda":
        # One launch holds the whole chain already.
        return None
    if chosen not in _READS_SEEDS_ON_THE_DEVICE and (native or backend is not None):
        # Not on a GPU at all, or what was asked for does not fit a graph.
        return None
    key = (tuple(config.to_dict().items()), purifier.value_range, purifier.precision, chosen, id(purifier.autoencoder))
    with _lock:
        executors = _kept.setdefault(purifier, {})
        if key not in executors:
            # One configuration at a time: overrides that change at every call must not pile up.
            for executor in executors.values():
                executor.clear()
            executors.clear()
            autoencoder = purifier.autoencoder
            executors[key] = GraphExecutor(
                purifier_function(purifier, config, chosen if chosen in _READS_SEEDS_ON_THE_DEVICE else None),
                version=lambda: fingerprint(autoencoder),
                capture=capture,
            )
        executor = executors[key]
    try:
        return executor(images, seed=seed, sample_ids=sample_ids)
    except GraphCaptureError as error:
        _refused[purifier] = str(error)
        warnings.warn(f"purify runs without CUDA graphs, launch by launch: {error}", RuntimeWarning, stacklevel=4)
        return None
