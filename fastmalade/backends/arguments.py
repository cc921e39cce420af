"""Checks of the tensors that a native backend takes: dtype, device, shape, memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT_NAMES = tuple(
    f"{layer}.{kind}" for layer in ("conv1", "conv2", "deconv1", "deconv2", "conv3") for kind in ("weight", "bias")
)


def checked_seed(seed: int) -> int:
    """``seed``, or ValueError where it is no unsigned 64-bit number."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
    return int(seed)


def is_plain(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether memory holds the values as they are and in order."""
    return value.dtype is dtype and value.is_cpu and value.is_contiguous() and not value.is_neg()


def like(x: Tensor) -> Tensor:
    """An uninitialised tensor like ``x``, which is contiguous, without gradient."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def checked_tensor(name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> Tensor:
    """``value`` as a contiguous CPU tensor after checking it; None in ``shape`` stands for any size."""
    found = value.shape
    if len(found) != len(shape) or not all(n is None or n == m for n, m in zip(shape, found, strict=True)):
        raise misfit(name, value, dtype, shape)
    if is_plain(value, dtype):
        return value
    if value.device.type != "cpu" or value.dtype != dtype:
        raise misfit(name, value, dtype, shape)
    return value.detach().resolve_neg().contiguous()


def misfit(name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> ValueError:
    """The error for a tensor that does not fit, with what was expected and what came."""
    expected = f"{dtype} on the cpu of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    return ValueError(f"{name}: expected {expected}, got {value.dtype} on {value.device} of shape {tuple(value.shape)}")


@functools.lru_cache(maxsize=64)
def weight_shapes(channels: int, hidden1: int, hidden2: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the ten arrays of a Table 8 autoencoder (paper 000), in the order of ``WEIGHT_NAMES``."""
    return (
        (hidden1, channels, 5, 5), (hidden1,),
        (hidden2, hidden1, 5, 5), (hidden2,),
        (hidden2, hidden1, 9, 9), (hidden1,),
        (hidden1, channels, 1, 1), (channels,),
        (channels, channels, 5, 5), (channels,),
    )  # fmt: skip
