"""Which implementation computes a chain, the pure-torch reference or a native backend, and why one cannot.

A request, by argument or by the environment variable FASTMALADE_BACKEND, is met or refused with the reason;
only where nothing was requested is the choice automatic.
"""

from __future__ import annotations

import os

import torch

from fastmalade.backends import cpu

__all__ = ["BACKENDS", "BackendUnavailableError", "available", "cpu", "resolve"]

BACKENDS: tuple[str, ...] = ("torch", "cpu")
"""Names of all backends this version knows."""

BackendUnavailableError = cpu.BackendUnavailableError


def available() -> dict[str, str | None]:
    """Every backend's name with None where it is usable on this machine, else the reason why it is not."""
    return {"torch": None, "cpu": cpu.unavailable_reason()}


def resolve(requested: str | None, *, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that computes a chain on tensors of this device and dtype.

    ``requested`` None means the environment variable FASTMALADE_BACKEND, and where that is unset or empty the
    automatic choice: "cpu" for float32 tensors on the CPU when the extension loads, else "torch". What a
    backend computes depends on r(x): all of a chain for a Table 8 autoencoder (paper 000), the Langevin
    update for any other.

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
    obstacle = _cpu_obstacle(device, dtype)
    if requested == "cpu" and obstacle is not None:
        raise BackendUnavailableError(f"backend 'cpu' ({source}) cannot compute this: {obstacle}")
    return "torch" if obstacle is not None else "cpu"


def _cpu_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the cpu backend cannot serve this call, or None."""
    if device.type != "cpu":
        return f"expected tensors on the cpu, got {device}"
    if dtype != torch.float32:
        return f"expected dtype torch.float32, got {dtype}"
    return cpu.unavailable_reason()
