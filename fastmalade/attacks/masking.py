"""Gradients that give an attack nothing to go by, and what a result says about them.

A defence that rounds, or whose backward pass is zero, withstands every gradient attack and protects from none: its
robustness is masked (Athalye et al. 2018). So attacks count such gradients, and warn where an image counts as robust
because of them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


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


class WatchedGradients(nn.Module):
    """A model as it is, for a library that differentiates it: warns once where a gradient leaves half a batch unmoved.

    Args:
        model: (B, C, H, W) -> logits (B, K), which the library calls and differentiates with respect to the images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.has_warned = False

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        if x.requires_grad and not self.has_warned:
            x.register_hook(self._seen)
        logits: Tensor = self.model(x)
        return logits

    def _seen(self, gradient: Tensor) -> None:
        rows = gradient.detach().flatten(1)
        for what, masked in (("zero", (rows == 0).all(1)), ("NaN or infinite", ~rows.isfinite().all(1))):
            if not self.has_warned and 2 * int(masked.sum()) >= len(rows) > 0:
                self.has_warned = True
                message = (
                    f"{int(masked.sum())} of {len(rows)} images got a gradient that is {what}: an attack that follows "
                    "it does not move them, and that they withstand it is no evidence of robustness"
                )
                warn((message,), stacklevel=2)
