"""Which implementation computes a chain, the pure-torch reference or a native backend, and why one cannot.

A request, by argument or by the environment variable FASTMALADE_BACKEND, is met or refused with the reason;
only where nothing was requested is the choice automatic.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import NamedTuple

import torch

from fastmalade.backends.arguments import PRECISIONS, checked_precision
from fastmalade.backends.cpu import calls as cpu_calls
from fastmalade.backends.cuda import calls as cuda_calls
from fastmalade.backends.extensions import BackendUnavailableError
from fastmalade.backends.triton import calls as triton_calls

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "BackendUnavailableError",
    "ModelShape",
    "available",
    "check_precision",
    "checked_precision",
    "native",
    "resolve",
]

BACKENDS: tuple[str, ...] = ("torch", "cpu", "cuda", "triton")
"""Names of all backends this version knows."""

_NATIVE: dict[str, ModuleType] = {"cpu": cpu_calls, "cuda": cuda_calls, "triton": triton_calls}
_PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
"""What is chosen automatically for tensors of a device, the first that can compute them; "torch" where none can."""


class ModelShape(NamedTuple):
    """What has to fit a GPU's chip: images (C, H, W) and the two hidden channel counts of a Table 8 autoencoder."""

    image: tuple[int, int, int]
    hidden_channels: tuple[int, int]


_FP32_ONLY = ("torch", "cpu")


def check_precision(precision: str, backend: str) -> None:
    """ValueError where ``backend`` does not compute in ``precision``; "cuda" and "triton" take all ``PRECISIONS``."""
    if checked_precision(precision) != "fp32" and backend in _FP32_ONLY:
        raise ValueError(f"precision: expected fp32 on the backend {backend}, got {precision!r}")


def available() -> dict[str, str | None]:
    """Every backend's name with None where it is usable on this machine, else the reason why it is not."""
    return {"torch": None} | {name: module.unavailable_reason() for name, module in _NATIVE.items()}


def native(name: str) -> ModuleType | None:
    """The module of a native backend, None for "torch"; ValueError for a name that is no backend's."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return _NATIVE.get(name)


def resolve(requested: str | None, *, device: torch.device, dtype: torch.dtype, model: ModelShape | None = None) -> str:
    """The backend that computes a chain on tensors of this device and dtype.

    ``requested`` None means the environment variable FASTMALADE_BACKEND, and where that is unset or empty the
    automatic choice: "cpu" for float32 tensors on the CPU when the extension loads; for those on a CUDA
    device "cuda" when its extension works there and ``model``, if given, fits the chip, else "triton"; where
    nothing else can, "torch". What a backend computes depends on r(x): all of a chain for a Table 8
    autoencoder (paper 000), the Langevin update for any other.

    Raises ValueError for an unknown name and BackendUnavailableError, saying why, for a request that cannot
    be met.
    """
    source = "argument"
    if requested is None:
        requested = os.environ.get("FASTMALADE_BACKEND") or None
        source = "environment variable FASTMALADE_BACKEND"
    if requested is not None and requested not in BACKENDS:
        raise ValueError(f"backend ({source}): expected one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "torch":
        return "torch"
    if requested is not None:
        obstacle = _obstacle(requested, device, dtype, model)
        if obstacle is not None:
            raise BackendUnavailableError(f"backend {requested!r} ({source}) cannot compute this: {obstacle}")
        return requested
    usable = (name for name in _PREFERENCE.get(device.type, ()) if _obstacle(name, device, dtype, model) is None)
    return next(usable, "torch")


def _obstacle(name: str, device: torch.device, dtype: torch.dtype, model: ModelShape | None) -> str | None:
    """Why a native backend cannot serve this call, or None."""
    expected = "cpu" if name == "cpu" or (name == "triton" and triton_calls.interpreted()) else "cuda"
    on_gpu = name == "cuda" and device.type == "cuda"
    reason = cuda_calls.unavailable_reason(device.index) if on_gpu else _NATIVE[name].unavailable_reason()
    if device.type != expected and (reason is None or name == "cpu"):
        return f"expected tensors on the {expected}, got {device}"
    if dtype != torch.float32:
        return f"expected dtype torch.float32, got {dtype}"
    if reason is None and on_gpu and model is not None:
        # Both ways: a chain that is to be differentiated must not change its backend on the way back.
        return cuda_calls.supports(*model, gradient=True, device=device.index or 0)
    return reason
