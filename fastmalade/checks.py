"""Checks of arguments: each raises an error that names what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_labelled_images(x: Tensor, labels: Tensor) -> None:
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


def check_value_range(value_range: Any) -> tuple[float, float]:
    """``value_range`` as two floats (low, high), the same for all channels.

    Args:
        value_range: a pair of numbers; arrays, tensors and sequences of one number count as that number.

    Raises:
        TypeError: not a pair, or bounds that are not numbers.
        ValueError: bounds for each channel, not finite, or not low < high.
    """
    try:
        if isinstance(value_range, (str, bytes)):
            raise TypeError
        bounds = [_numbers(bound) for bound in value_range]
    except TypeError:
        raise TypeError(f"value_range: expected two numbers (low, high), got {value_range!r}") from None
    if len(bounds) != 2:
        raise ValueError(f"value_range: expected two numbers (low, high) for all channels, got {len(bounds)} entries")
    counts = [len(numbers) for numbers in bounds]
    if counts != [1, 1]:
        raise ValueError(
            f"value_range: expected one low and one high for all channels, got {counts[0]} and {counts[1]} numbers; "
            "for bounds that differ by channel purify images in [0, 1] and let the classifier normalise them itself"
        )
    (low,), (high,) = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range: expected finite (low, high) with low < high, got {(low, high)}")
    return low, high


def _numbers(bound: Any) -> list[float]:
    """The numbers of one bound: of a number, a tensor, an array or a sequence; TypeError for anything else."""
    try:
        array = np.asarray(bound.detach().cpu().double() if isinstance(bound, Tensor) else bound)
    except ValueError:
        raise TypeError("sequences of different lengths") from None
    if array.dtype.kind not in "iufO":
        raise TypeError
    return [float(number) for number in array.flatten()]


def rounding_of_range(dtype: torch.dtype, low: float, high: float) -> float:
    """By how much images of ``dtype`` may leave [low, high] and still count as in it: 4 eps max(|low|, |high|).

    Normalising by a mean and a standard deviation rounds four times, resizing about as often, and each may be off by
    eps / 2. eps is that of the dtype, for float64 that of float32: images often pass through float32 on their way.
    """
    return 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * max(abs(low), abs(high))


def images_of(bad: Tensor) -> str:
    """Where the True values of ``bad`` (B, C, H, W) lie, for a message: how many, in how many images, the first one."""
    per_image = bad.flatten(1).sum(1)
    images = per_image.nonzero().flatten().tolist()
    count = int(per_image.sum())
    values = "1 value" if count == 1 else f"{count} values"
    return f"{values} in {len(images)} of {len(bad)} images, the first in image {images[0]}"


def check_range(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """``images`` (B, C, H, W), as a clamped copy where values leave ``value_range`` by rounding alone.

    Raises:
        ValueError: values outside by more than :func:`rounding_of_range`, or NaN; names the first image.
    """
    return _clamped(images, *value_range, "images: expected values in [{low}, {high}], got {smallest} to {largest}")


def _clamped(images: Tensor, low: float, high: float, message: str) -> Tensor:
    if images.numel() == 0:
        return images
    smallest, largest = float(images.min()), float(images.max())
    if smallest >= low and largest <= high:
        return images
    slack = rounding_of_range(images.dtype, low, high)
    inside = (images >= low - slack) & (images <= high + slack)
    if not bool(inside.all()):
        text = message.format(low=low, high=high, smallest=smallest, largest=largest)
        raise ValueError(f"{text} ({images_of(~inside)}, counting from 0)")
    return images.clamp(low, high)


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


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every named count is a positive integer."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}: expected a positive integer, got {count!r}")


def check_unit_images(images: Tensor) -> Tensor:
    """``images``, a non-empty (n, C, H, W) floating tensor with values in [0, 1]; see :func:`check_range`.

    Raises:
        ValueError: anything else.
    """
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"expected images (n, C, H, W), floating, n >= 1; got shape {tuple(images.shape)}, dtype {images.dtype}"
        )
    return _clamped(images, 0.0, 1.0, "expected image values in [0, 1], got [{smallest:g}, {largest:g}]")


def check_labels(labels: Tensor, n_images: int, num_classes: int) -> None:
    """Raise ValueError unless ``labels`` is (n_images,) int64 with values in 0..num_classes-1."""
    if labels.shape != (n_images,) or labels.dtype != torch.int64:
        raise ValueError(
            f"expected labels of shape ({n_images},) and dtype int64, "
            f"got shape {tuple(labels.shape)} and dtype {labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"expected labels in 0..{num_classes - 1}, got {low}..{high}")
