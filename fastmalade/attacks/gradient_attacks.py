"""FGSM, R+FGSM, PGD and MIM, each with a choice of gradient and EOT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fastmalade import geometry
from fastmalade.attacks.base import Attack
from fastmalade.checks import check_choice, check_count, check_number

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """Fast gradient sign method: x' = x + epsilon * direction of steepest ascent (000 eq. 1, 001 eq. 1).

    The direction is the sign of the gradient for Linf, see :func:`fastmalade.geometry.steepest` for others.
    """

    name: ClassVar[str] = "FGSM"

    def _step(self, x: Tensor, ascent: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return x + self.epsilon * geometry.steepest(ascent, self.norm), memory


@dataclass(frozen=True, kw_only=True)
class RandomFGSM(Attack):
    """R+FGSM: a random step of length alpha, then FGSM with what is left of epsilon (000 eq. 2).

        x~ = x + alpha * sign(N(0, I)),    x' = x~ + (epsilon - alpha) * sign(gradient at x~)

    For L2 the sign is replaced by the direction of unit length. Both points are clipped to the value range.

    Args:
        alpha: length of the random step, 0 <= alpha <= epsilon; the paper's is 0.05 with epsilon 0.3.

    Raises:
        ValueError: alpha out of range, or norm "l1", where a step changes a few components only and is not noise.
    """

    alpha: float = 0.05

    name: ClassVar[str] = "R+FGSM"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "alpha", check_number("alpha", self.alpha, high=self.epsilon))
        if self.norm == "l1":
            raise ValueError("norm: expected 'linf' or 'l2' for R+FGSM, got 'l1'")

    def _start(self, images: Tensor, seed: int, ids: Tensor, value_range: tuple[float, float]) -> Tensor:
        direction = geometry.steepest(geometry.normals(seed, ids, 0, images), self.norm)
        return (images + self.alpha * direction).clamp(*value_range)

    def _step(self, x: Tensor, ascent: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return x + (self.epsilon - self.alpha) * geometry.steepest(ascent, self.norm), memory


@dataclass(frozen=True, kw_only=True)
class IterativeAttack(Attack):
    """Settings of attacks that take many steps; use a subclass. See :class:`Attack` for the settings of all attacks.

    Args:
        steps: gradient steps, at least 1.
        step_size: length of a step in the norm; by default 2.5 epsilon / steps, which lets a path cross the ball.
        schedule: "constant" steps, or "cosine": half a cosine from ``step_size`` down to a hundredth of it. Steps that
            do not fall keep jumping across a maximum.
        restarts: runs from different starts; per image the last iterate that fools most queries is kept.
        random_start: start from a point drawn uniformly from the ball; needed for more than one restart to differ in
            more than noise.
    """

    steps: int = 40
    step_size: float | None = None
    schedule: Schedule = "constant"
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps, 1)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_count("restarts", self.restarts, 1)
        if not isinstance(self.random_start, bool):
            raise TypeError(f"random_start: expected a bool, got {type(self.random_start).__name__}")
        chosen = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        object.__setattr__(self, "step_size", check_number("step_size", chosen))

    @property
    def n_steps(self) -> int:
        """Gradient steps of one restart."""
        return self.steps

    @property
    def n_restarts(self) -> int:
        """Runs from different starts."""
        return self.restarts

    def _start(self, images: Tensor, seed: int, ids: Tensor, value_range: tuple[float, float]) -> Tensor:
        if not self.random_start:
            return images.clone()
        return images + geometry.random_point(seed, ids, images, self.epsilon, self.norm)

    def size_of_step(self, step: int) -> float:
        """Length of step number ``step``, 0 <= step < ``steps``."""
        assert self.step_size is not None
        if self.schedule == "constant":
            return self.step_size
        return self.step_size * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / self.steps)))

    def _step(self, x: Tensor, ascent: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return x + self.size_of_step(step) * geometry.steepest(ascent, self.norm), memory


@dataclass(frozen=True, kw_only=True)
class PGD(IterativeAttack):
    """Projected gradient descent (Madry et al. 2018; 001 eq. 2, settings of appendix B.1.1: step size 0.01).

    Each step goes ``step_size`` along the steepest direction, is projected into the ball and clipped to the range.
    With ``gradient="bpda"`` and ``eot=K`` this is BPDA with EOT (001 B.1.2: K = 30); without a random start it is BIM.

    Args: see :class:`Attack` and :class:`IterativeAttack`.
    """

    name: ClassVar[str] = "PGD"


@dataclass(frozen=True, kw_only=True)
class MIM(IterativeAttack):
    """Momentum iterative method (Dong et al. 2018; 001 eq. 3).

    The step follows m <- decay * m + g / |g|_1 instead of the gradient g. 001 prints the norm as p; the original and
    this one use the L1 norm.

    Args:
        decay: factor mu of the momentum, >= 0.
        random_start: off by default, as in the original.
    """

    random_start: bool = False
    decay: float = 1.0

    name: ClassVar[str] = "MIM"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "decay", check_number("decay", self.decay))

    def _step(self, x: Tensor, ascent: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        total = ascent.flatten(1).abs().sum(1).clamp_min(torch.finfo(ascent.dtype).tiny)
        momentum = self.decay * memory + ascent / total.reshape(-1, *([1] * (ascent.ndim - 1)))
        return x + self.size_of_step(step) * geometry.steepest(momentum, self.norm), momentum
