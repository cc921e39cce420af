"""Counting correct answers, and how far a count can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as fractions (low, high).

    Args:
        successes: 0..n.
        n: number of trials, at least 1.
        level: coverage, in (0, 1).

    Raises:
        ValueError: arguments outside these ranges.

    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got successes {successes} and n {n}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number in (0, 1), got {level}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(correct: int, n: int, digits: int = 1, sign: str = "") -> str:
    """Accuracy and its 95% interval in percent, such as "44.0 [31.2, 57.7]"; ``sign`` follows the accuracy."""
    low, high = wilson_interval(correct, n)
    return f"{100 * correct / n:.{digits}f}{sign} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


@torch.no_grad()
def predictions(model: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500) -> Tensor:
    """Predicted classes (n,) int64 of images (n, C, H, W) under a model that gives logits (b, K)."""
    parts = [model(batch).argmax(1) for batch in images.split(batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, batch_size: int = 500) -> int:
    """Number of images (n, C, H, W) whose predicted class equals the label (n,)."""
    return int((predictions(model, images, batch_size) == labels).sum())
