"""MagNet: one pass through an autoencoder, and detectors that reject images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmalade.backends.values import NoiseSource
from fastmalade.chain.call import run
from fastmalade.chain.config import ChainConfig
from fastmalade.checks import check_count
from fastmalade.defenses.base import Cost, Defense, StatedGradient
from fastmalade.models import Autoencoder
from fastmalade.models.flops import network_flops

_ONE_FULL_STEP = ChainConfig(n_steps=1, step_size=1.0, noise_scale=0.0, clamp="final")
ERROR_NORMS = (1, 2)
TEMPERATURES = (10, 40)


class MagNet(Defense):
    """The reformer x -> r(x), clamped to the range of the images, and two kinds of detectors.

    The reformer is one full step of MALA without noise (000 section 4.2) and runs on the same native kernels if the
    autoencoder is that of Table 8. It is deterministic, and its gradient is exact.

    A detector scores an image and rejects it above a threshold:

    - "error-1", "error-2": mean over pixels of |x - r(x)|^p, p = 1, 2.
    - "divergence-10", "divergence-40": Jensen-Shannon divergence in nats between softmax(C(x) / T) and
      softmax(C(r(x)) / T), T = 10, 40; these need the classifier C.

    Args:
        autoencoder: r, (B, C, H, W) -> (B, C, H, W) on [0, 1].
        thresholds: by detector; usually set by :meth:`calibrate`.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        ValueError: an unknown detector, or a threshold that is not finite.

    Source: Meng and Chen 2017, "MagNet", sections 4 and 5; paper 000, section 4.2.
    """

    kind: ClassVar[str] = "magnet"

    def __init__(
        self,
        autoencoder: nn.Module,
        *,
        thresholds: Mapping[str, float] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        super().__init__(value_range=value_range, gradient=gradient)
        self.autoencoder = autoencoder
        known = [f"error-{p}" for p in ERROR_NORMS] + [f"divergence-{t}" for t in TEMPERATURES]
        for name, value in (thresholds or {}).items():
            if name not in known or not math.isfinite(value):
                raise ValueError(f"thresholds: expected finite numbers for {', '.join(known)}, got {name}: {value!r}")
        self.thresholds = dict(thresholds or {})

    @property
    def channels(self) -> int | None:
        """C of the images."""
        return getattr(self.autoencoder, "in_channels", None)

    @property
    def multiple(self) -> int:
        """4 for the Table 8 autoencoder."""
        return 4 if isinstance(self.autoencoder, Autoencoder) else 1

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    @torch.no_grad()
    def scores(self, x: Tensor, classifier: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Scores (B,) of images x (B, C, H, W) in ``value_range``, by detector.

        Args:
            classifier: (B, C, H, W) in ``value_range`` -> logits (B, K), for the divergence detectors, which are left
                out without it.
        """
        self._check(x)
        low, high = self.value_range
        unit = (x - low) / (high - low)
        # Compared with r(x) itself: clamping would hide part of the error.
        difference = (self.autoencoder(unit) - unit).abs().flatten(1)
        scores = {f"error-{p}": difference.pow(p).mean(1) for p in ERROR_NORMS}
        if classifier is not None:
            logits, reformed = classifier(x), classifier(self(x))
            scores |= {f"divergence-{t}": _jensen_shannon(logits / t, reformed / t) for t in TEMPERATURES}
        return scores

    def calibrate(
        self,
        images: Tensor,
        classifier: Callable[[Tensor], Tensor] | None = None,
        *,
        false_positive_rate: float = 0.001,
    ) -> dict[str, float]:
        """Set the threshold of each detector so that it rejects a given share of clean validation images.

        Args:
            images: (n, C, H, W) in ``value_range``, clean, not from the test set.
            classifier: see :meth:`scores`.
            false_positive_rate: that share for each detector, in (0, 1); 0.001 for MNIST in Meng and Chen.

        Returns:
            The thresholds.

        Raises:
            ValueError: a rate out of its range, or too few images to reject even one at that rate.
        """
        if not 0.0 < false_positive_rate < 1.0:
            raise ValueError(f"false_positive_rate: expected a number in (0, 1), got {false_positive_rate!r}")
        allowed = math.floor(len(images) * false_positive_rate)
        if allowed < 1:
            raise ValueError(
                f"images: expected at least {math.ceil(1 / false_positive_rate)} for a rate of "
                f"{false_positive_rate}, got {len(images)}"
            )
        parts = [self.scores(part, classifier) for part in images.split(500)]
        for name in parts[0]:
            ordered = torch.cat([part[name] for part in parts]).sort(descending=True).values
            # Scores above this one are rejected: exactly ``allowed`` images, unless scores are equal.
            self.thresholds[name] = float(ordered[allowed])
        return dict(self.thresholds)

    def rejects(self, x: Tensor, classifier: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Which images at least one detector rejects: bool (B,). Arguments as for :meth:`scores`.

        Raises:
            ValueError: a detector without a threshold, or a divergence detector without the classifier.
        """
        scores = self.scores(x, classifier)
        missing = sorted(self.thresholds.keys() ^ scores.keys())
        if missing:
            raise ValueError(
                f"thresholds: expected one for each of {', '.join(sorted(scores))} (call calibrate, with the same "
                f"classifier), got {', '.join(sorted(self.thresholds)) or 'none'}"
            )
        return torch.stack([value > self.thresholds[name] for name, value in scores.items()]).any(0)

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """Of the reformer; see :meth:`fastmalade.Defense.cost`."""
        check_count("batch", batch, 1)
        self._check_shape((batch, *image_shape))
        return Cost(batch * network_flops(self.autoencoder, (1, *image_shape))[0], batch, 0)

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        return {"autoencoder": self.autoencoder}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        return {"thresholds": self.thresholds, "gradient": self.gradient}

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        # The seed does not matter: this step has no noise.
        return run(x, self.autoencoder, _ONE_FULL_STEP.settings, NoiseSource(0, sample_ids))


def _jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Divergence in nats between the softmaxes of two sets of logits (B, K): (B,), in [0, ln 2]."""
    p, q = first.softmax(1), second.softmax(1)
    middle = 0.5 * (p + q)
    return 0.5 * (_relative_entropy(p, middle) + _relative_entropy(q, middle))


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1)
