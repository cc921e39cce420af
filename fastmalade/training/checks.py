"""Checks of the tensors handed to the training functions."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raise ValueError unless ``images`` is a non-empty (n, C, H, W) floating tensor with values in [0, 1]."""
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(
            f"expected images (n, C, H, W), floating, n >= 1; got shape {tuple(images.shape)}, dtype {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"expected image values in [0, 1], got [{low:g}, {high:g}]")


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
