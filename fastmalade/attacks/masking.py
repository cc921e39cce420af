"""Gradients that give an attack nothing to go by, and what a result says about them.

A defence that rounds, or whose backward pass is zero, withstands every gradient attack and protects from none: its
robustness is masked (Athalye et al. 2018). So attacks count such gradients, and warn where an image counts as robust
because of them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class GradientWarning(UserWarning):
    """Images that count as robust under an attack whose gradients were zero or not finite."""


def input_gradient(values: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of the sum of ``values`` (rows,) with respect to ``leaf`` (rows, C, H, W).

    Raises:
        RuntimeError: the values do not depend on the leaf in autograd's eyes.
    """
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise RuntimeError(
            "model: expected logits with a gradient with respect to the images, got logits without one: something in "
            "the model cuts it off (x.detach(), torch.no_grad(), a numpy or integer operation); attack a "
            "DefendedClassifier with gradient='bpda', or give that part a backward pass of its own"
        )
    return gradient


def masking_warnings(success: Tensor, steps: Tensor, zero: Tensor, non_finite: Tensor) -> tuple[str, ...]:
    """What to say of images that were not fooled and had no gradient to go by in at least half of their steps.

    Args:
        success: bool (n,).
        steps, zero, non_finite: int64 (n,), gradient steps of each image, and those of them with such a gradient.
    """
    found = []
    n, unfooled = len(success), ~success & (steps > 0)
    for count, what, why in (
        (zero, "zero", "rounding, sign or argmax in the model, a saturated softmax, or a backward pass that is zero"),
        (non_finite, "NaN or infinite", "a square root or division at zero, or an overflow, in the model"),
    ):
        masked = int((unfooled & (2 * count >= steps)).sum())
        if masked:
            found.append(
                f"{masked} of {n} images count as robust, but at least half of their gradients were {what}: this is "
                f"no evidence of robustness ({why}?); try gradient='bpda', loss='margin' or an attack without gradients"
            )
    return tuple(found)


def warn(messages: tuple[str, ...], stacklevel: int) -> None:
    """Issue each message as a :class:`GradientWarning`."""
    for message in messages:
        warnings.warn(message, GradientWarning, stacklevel=stacklevel + 1)
