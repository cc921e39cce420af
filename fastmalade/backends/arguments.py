"""Checks of the tensors that a native backend takes: dtype, device, shape, memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmalade.checks import images_of

CPU = torch.device("cpu")
PLAIN_TYPES = (Tensor, torch.nn.Parameter)
"""Tensors whose operations nobody has overridden."""

WRITTEN_TO = (
    "langevin_chain: expected the autoencoder's weights of the forward pass, got weights that were modified in place "
    "since"
)
IMAGES = (None, None, None, None)  # (B, C, H, W) of any sizes
WEIGHT_NAMES = tuple(
    f"{layer}.{kind}" for layer in ("conv1", "conv2", "deconv1", "deconv2", "conv3") for kind in ("weight", "bias")
)

PRECISIONS = ("fp32", "tf32x3", "tf32")
"""Of a chain's products on a GPU: float32 throughout; or on tensor cores, as three products of operands split into two
TF32 numbers, or as one of operands rounded to TF32 (10 bits after the point)."""


def checked_precision(precision: str) -> str:
    """``precision``, or ValueError where it is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


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


def checked_tensor(
    name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int | None], device: torch.device = CPU
) -> Tensor:
    """``value`` contiguous and without gradient, after checking it; None in ``shape`` stands for any size.

    Raises:
        ValueError: another dtype, shape or device.
    """
    found = value.shape
    # As is_plain, without a call.
    kept = found == shape and device is CPU and value.dtype is dtype and value.is_cpu and value.is_contiguous()
    if kept and not value.is_neg():
        return value
    fits = len(found) == len(shape) and all(n is None or n == m for n, m in zip(shape, found, strict=True))
    if fits and device is CPU and is_plain(value, dtype):
        return value
    if not fits or value.device != device or value.dtype != dtype:
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name}: expected {dtype} on {device} of shape ({sizes}), "
            f"got {value.dtype} on {value.device} of shape {tuple(found)}"
        )
    return value.detach().resolve_neg().contiguous()


def checked_model(weights: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], list[int]]:
    """The ten float32 arrays of a Table 8 autoencoder, contiguous and on the device of ``x`` (B, C, H, W).

    Also the sizes (channels, height, width, hidden1, hidden2) they agree on. Raises ValueError where they do not.
    """
    if len(weights) != len(WEIGHT_NAMES):
        names = ", ".join(WEIGHT_NAMES)
        raise ValueError(f"weights: expected {len(WEIGHT_NAMES)} tensors ({names}), got {len(weights)}")
    channels, height, width = x.shape[1:]
    hidden1, hidden2 = (int(weights[n].shape[0]) if weights[n].dim() else 0 for n in (0, 2))
    device = CPU if x.is_cpu else x.device
    arrays = [
        checked_tensor(name, weight, torch.float32, shape, device)
        for name, weight, shape in zip(WEIGHT_NAMES, weights, weight_shapes(channels, hidden1, hidden2), strict=True)
    ]
    return arrays, [channels, height, width, hidden1, hidden2]


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


def diverged(result: Tensor) -> FloatingPointError:
    """The error of a chain whose ``result`` (B, C, H, W) is not finite."""
    return FloatingPointError(
        "the chain diverged: expected finite results, got NaN or infinity; check step_size and noise_scale "
        f"({images_of(~result.isfinite())}, counting from 0)"
    )
