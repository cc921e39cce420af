"""``Purifier.purify`` on a GPU: when the chain of a module r(x) runs as a CUDA graph, and the graphs that are kept."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.chain.config import ChainConfig
from fastmalade.chain.observers import is_unobserved
from fastmalade.executor.capture import Capture, GraphCaptureError
from fastmalade.executor.fingerprint import fingerprint
from fastmalade.executor.graphs import GraphExecutor
from fastmalade.models.table8 import is_native_autoencoder

_READS_SEEDS_ON_THE_DEVICE = ("cuda", "triton", "torch")
_lock = threading.Lock()


class ChainModule(Protocol):
    """What is needed from a purifier."""

    autoencoder: Callable[[Tensor], Tensor]
    chain: ChainConfig
    value_range: tuple[float, float]
    backend: str | None
    precision: str

    def forward_from_device(self, x: Tensor, seed_bits: Tensor, sample_ids: Tensor) -> Tensor:
        """See :data:`fastmalade.executor.graphs.Function`."""


_kept: weakref.WeakKeyDictionary[ChainModule, dict[Hashable, GraphExecutor]] = weakref.WeakKeyDictionary()
_refused: weakref.WeakKeyDictionary[ChainModule, str] = weakref.WeakKeyDictionary()


def graph_backend(requested: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend inside a graph: one that reads its seed from device memory when its kernels run.

    Raises:
        BackendUnavailableError: the backend asked for cannot run here, or a graph cannot hold it.
        ValueError: an unknown backend.
    """
    name = backends.resolve(requested, device=device, dtype=dtype)
    if name in _READS_SEEDS_ON_THE_DEVICE:
        return name
    if requested is not None:
        able = ", ".join(_READS_SEEDS_ON_THE_DEVICE)
        raise backends.BackendUnavailableError(f"backend: expected one of {able} in a CUDA graph, got {requested!r}")
    usable = backends.available()["triton"] is None and device.type == "cuda" and dtype == torch.float32
    return "triton" if usable else "torch"


def why_not_captured(purifier: ChainModule, images: Tensor, capture: Capture | None = None) -> str | None:
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
    purifier: ChainModule,
    images: Tensor,
    config: ChainConfig,
    backend: str | None,
    *,
    seed: int | None,
    sample_ids: Any,
    capture: Capture | None = None,
) -> Tensor | None:
    """The purified images, or None where no graph is used: see :func:`why_not_captured`; native chains need none.

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
        # The images are not on a GPU at all, or the backend asked for does not fit a graph.
        return None
    key = (tuple(config.to_dict().items()), purifier.value_range, purifier.precision, chosen, id(purifier.autoencoder))
    with _lock:
        executors = _kept.setdefault(purifier, {})
        if key not in executors:
            # One configuration at a time: overrides that change at every call must not pile up.
            for executor in executors.values():
                executor.clear()
            executors.clear()
            # A copy with the settings of this call, which shares the model. The purifier itself must not be held by
            # what is kept for as long as it lives.
            twin, autoencoder = copy.copy(purifier), purifier.autoencoder
            twin.chain, twin.backend = config, chosen if chosen in _READS_SEEDS_ON_THE_DEVICE else None
            executors[key] = GraphExecutor(
                twin.forward_from_device, version=lambda: fingerprint(autoencoder), capture=capture
            )
        executor = executors[key]
    try:
        return executor(images, seed=seed, sample_ids=sample_ids)
    except GraphCaptureError as error:
        _refused[purifier] = str(error)
        warnings.warn(f"purify runs without CUDA graphs, launch by launch: {error}", RuntimeWarning, stacklevel=4)
        return None
