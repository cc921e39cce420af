"""Descent rules as functions of tensors, so that a whole descent can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmalade.checks import check_positive


@dataclass(frozen=True)
class Momentum:
    """v <- momentum v + g, z <- z - rate v, with a tenth of the rate from step ceil(0.8 n_steps) on.

    Args:
        rate: > 0.
        momentum: in [0, 1).

    Raises:
        ValueError: a number out of its range.

    Source: the public code of Defense-GAN (Samangouei et al. 2018), rate 10, momentum 0.7.
    """

    rate: float = 10.0
    momentum: float = 0.7

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum!r}")

    def slots(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """State before the first step: a velocity like each parameter."""
        return tuple(torch.zeros_like(p) for p in parameters)

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], slots: Sequence[Tensor], t: int, n_steps: int
    ) -> tuple[Tensor, ...]:
        """Parameters and slots after step t of n_steps, in that order."""
        rate = self.rate * (0.1 if t >= math.ceil(0.8 * n_steps) else 1.0)
        velocity = tuple(self.momentum * v + g for v, g in zip(slots, gradients, strict=True))
        return (*(p - rate * v for p, v in zip(parameters, velocity, strict=True)), *velocity)


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction (Kingma and Ba 2014, algorithm 1), as ``torch.optim.Adam`` computes it.

    Args:
        rate: > 0.
        beta1, beta2: decay of the two moments, in [0, 1).
        epsilon: > 0, added to the root of the second moment.

    Raises:
        ValueError: a number out of its range.
    """

    rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        check_positive("epsilon", self.epsilon)
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)!r}")

    def slots(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """State before the first step: the first moments of all parameters, then the second."""
        return tuple(torch.zeros_like(p) for p in (*parameters, *parameters))

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], slots: Sequence[Tensor], t: int, n_steps: int
    ) -> tuple[Tensor, ...]:
        """Parameters and slots after step t, in that order."""
        count = len(parameters)
        first = tuple(self.beta1 * m + (1 - self.beta1) * g for m, g in zip(slots[:count], gradients, strict=True))
        second = tuple(
            self.beta2 * v + (1 - self.beta2) * g.square() for v, g in zip(slots[count:], gradients, strict=True)
        )
        rate = self.rate / (1 - self.beta1 ** (t + 1))
        scale = 1 / (1 - self.beta2 ** (t + 1))
        moved = tuple(
            # Where a gradient has been zero so far, the derivative of the root would be infinite without the floor.
            p - rate * m / ((scale * v).clamp_min(1e-30).sqrt() + self.epsilon)
            for p, m, v in zip(parameters, first, second, strict=True)
        )
        return (*moved, *first, *second)
