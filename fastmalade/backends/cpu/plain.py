"""The native chain on a CPU in one call that also finds the weights and checks everything (``csrc/plain_call.h``).

For the ordinary case, plain float32 tensors through the ``Autoencoder`` of this package. On one image the general way's
checks in Python take a third as long as the kernels for ten steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import DIVERGED, PLAIN_TYPES, checked_tensor
from fastmalade.backends.cpu import calls as cpu

Settings = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Of a ``ChainConfig``: step sizes, noise scales, lows and highs, N floats each."""


_last: tuple[Settings, Any] | None = None  # of the latest call, most often those of the next one


def _prepared(settings: Settings) -> Any:
    """What ``cpu.settings_of`` gives, without a look at the numbers for settings that are the same object."""
    global _last
    last = _last
    if last is None or last[0] is not settings:
        _last = last = (settings, cpu.settings_of(*settings))
    return last[1]


def _offered() -> bool:
    """Whether there is the extension, and a version of torch whose tensors it can read."""
    return cpu.EXCHANGE is not None and cpu.unavailable_reason() is None


def _call(
    x: Tensor, out: Tensor, modules: Any, settings: Settings, seed: int, sample_ids: Tensor | None, any_backend: bool
) -> tuple[tuple[Any, ...], object]:
    """What both calls of the extension take first, and what keeps an address alive."""
    ids = None if sample_ids is None else checked_tensor("sample_ids", sample_ids, torch.int64, (x.shape[0],))
    address, threads = 0 if ids is None else ids.data_ptr(), torch.get_num_threads()
    prepared = _prepared(settings)
    return (cpu.EXCHANGE, PLAIN_TYPES, x, out, modules, prepared, seed, address, threads, any_backend), ids


def plain_chain(
    x: Tensor,
    modules: Any,
    settings: Settings,
    *,
    seed: int,
    sample_ids: Tensor | None,
    any_backend: bool,
    recorded: bool,
    checked: bool,
) -> Tensor | None:
    """:func:`fastmalade.backends.cpu.calls.langevin_chain` in one call, or None for what that call does not take.

    It takes a contiguous float32 ``x`` (B, C, H, W) on the CPU that is no instance of a subclass, and weights like it.

    Args:
        modules: ``_modules`` of an ``Autoencoder``, whose ten parameters are found there.
        settings: step sizes, noise scales, lows and highs, N floats each.
        seed, sample_ids: as there.
        any_backend: the environment variable FASTMALADE_BACKEND may choose another, and None is returned then.
        recorded: autograd records; None where it would find something to record on the side of the weights.
        checked: None unless every value of x lies in [0, 1].

    Raises:
        FloatingPointError: with ``checked``, a result that is not finite.
    """
    if not _offered():
        return None
    extension, out = cpu.load(), torch.empty_like(x)
    call, _alive = _call(x, out, modules, settings, seed, sample_ids, any_backend)
    found = extension.plain_chain(*call, recorded, checked)
    if found == extension.PlainResult.refused:
        return None
    if found == extension.PlainResult.diverged:
        raise FloatingPointError(DIVERGED)
    return out


class PlainRecording:
    """A chain of :func:`plain_recorded_chain` with its activations and its packed weights kept."""

    def __init__(self, recording: Any) -> None:
        self._recording = recording

    def gradient(self, cotangent: Tensor) -> Tensor:
        """Vector-Jacobian product with respect to x.

        Raises:
            RuntimeError: a weight has been written to since.
        """
        gradient = self._gradient(cotangent)
        if gradient is None:  # the cotangent of a sum, for example, has no memory of its own for each element
            dense = cotangent.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
            gradient = self._gradient(dense)
        if gradient is not None:
            return gradient
        raise ValueError(f"cotangent: expected float32 on the cpu, got {cotangent.dtype} on {cotangent.device}")

    def _gradient(self, cotangent: Tensor) -> Tensor | None:
        out = torch.empty_like(cotangent)
        done = cpu.load().plain_chain_reverse(
            self._recording, cpu.EXCHANGE, PLAIN_TYPES, cotangent, out, torch.get_num_threads()
        )
        return out if done else None


def plain_recorded_chain(
    x: Tensor,
    modules: Any,
    settings: Settings,
    *,
    seed: int,
    sample_ids: Tensor | None,
    any_backend: bool,
    most_bytes: int,
) -> tuple[Tensor, PlainRecording] | None:
    """:func:`plain_chain` with its activations kept, None also where they would take more than ``most_bytes``."""
    if not _offered():
        return None
    out = torch.empty_like(x)
    call, _alive = _call(x, out, modules, settings, seed, sample_ids, any_backend)
    recording = cpu.load().plain_recorded_chain(*call, most_bytes)
    return None if recording is None else (out, PlainRecording(recording))
