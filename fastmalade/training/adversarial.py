"""The attack inside adversarial training, and its settings (Madry et al. 2018, section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmalade.checks import check_count
from fastmalade.geometry import Norm, check_norm, into_ball, random_point, steepest
from fastmalade.training.loop import LoopSettings


@dataclass(frozen=True)
class AdversarialSettings(LoopSettings):
    """Settings of a training on attacked images; the shared ones are described at ``LoopSettings``.

    Attributes:
        epsilon: radius of the attack in units of the images, > 0.
        norm: "linf", "l2" or "l1".
        attack_steps: steps of projected gradient ascent on each batch, from a random point of the ball.
        step_share: one of these steps as a share of epsilon; by default 2 / attack_steps, a path twice the radius.
        eot: gradients averaged for each step, each with noise of its own, where what is attacked is random.
        ramp: share of the training over which the radius rises from ``first_share`` of epsilon to all of it. Without it
            a network may begin by giving every image the same logits, and stay there.
        first_share: of epsilon, at the start of the ramp.
    """

    epsilon: float = 0.3
    norm: Norm = "linf"
    attack_steps: int = 10
    step_share: float | None = None
    eot: int = 1
    ramp: float = 0.4
    first_share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "norm", check_norm(self.norm))
        check_count("attack_steps", self.attack_steps, 1)
        check_count("eot", self.eot, 1)
        for name, value in (("epsilon", self.epsilon), ("step_share", self.step_share)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        for name in ("ramp", "first_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)!r}")

    def epsilon_at(self, position: float) -> float:
        """Radius of the attack when ``position``, from 0 to 1, of the training is over."""
        share = 1.0 if self.ramp == 0.0 else min(1.0, position / self.ramp)
        return self.epsilon * (self.first_share + (1.0 - self.first_share) * share)


def attacked(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    settings: AdversarialSettings,
    epsilon: float,
    seed: int,
) -> Tensor:
    """Images of the ball around ``images`` in which the cross entropy is high, without gradient.

    Args:
        logits: (B, C, H, W) -> (B, K), differentiable; may draw noise of its own at every call.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        settings: norm, steps and draws; the radius is ``epsilon``.
        epsilon: radius, see :meth:`AdversarialSettings.epsilon_at`.
        seed: of the random start.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    share = 2.0 / settings.attack_steps if settings.step_share is None else settings.step_share
    start = images + random_point(seed, torch.arange(len(images)), images, epsilon, settings.norm)
    x = into_ball(start, images, epsilon, settings.norm, (0.0, 1.0))
    for _ in range(settings.attack_steps):
        gradient = torch.zeros_like(x)
        for _draw in range(settings.eot):
            at = x.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(logits(at), labels, reduction="sum")
            gradient += torch.autograd.grad(loss, at)[0]
        moved = x + share * epsilon * steepest(gradient, settings.norm)
        x = into_ball(moved, images, epsilon, settings.norm, (0.0, 1.0))
    return x.detach()


def drawn_seed() -> int:
    """A seed for the next batch, from torch's global generator, which a training has seeded."""
    return int(torch.randint(2**62, ()))
