"""Argument checks that the attacks share: what was expected, and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_images(x: Tensor, labels: Tensor) -> None:
    """Raise TypeError or ValueError unless these are images (n, C, H, W), floating, and int64 labels (n,)."""
    for name, value in (("images", x), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images: expected float32 or float64, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"images: expected shape (n, C, H, W), got {tuple(x.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64, got {labels.dtype}")
    if tuple(labels.shape) != (len(x),):
        raise ValueError(f"labels: expected shape ({len(x)},), got {tuple(labels.shape)}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"labels: expected classes >= 0, got {int(labels.min())}")


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_range(images: Tensor, value_range: tuple[float, float]) -> None:
    """Raise ValueError unless all values lie in ``value_range``; NaN does not."""
    low, high = value_range
    if images.numel() and not bool(((images >= low) & (images <= high)).all()):
        raise ValueError(
            f"images: expected values in [{low}, {high}], got {float(images.min())} to {float(images.max())}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_number(name: str, value: object, *, low: float = 0.0, high: float = math.inf) -> float:
    """``value`` as a finite float in [low, high].

    Raises:
        TypeError: not a number.
        ValueError: not finite, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}: expected a finite number in [{low}, {high}], got {value}")
    return float(value)
