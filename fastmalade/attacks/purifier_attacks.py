"""Attacks made for purifiers: R+PGD, and the counter attacks A and B of APuDAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastmalade.attacks.eot import Objective
from fastmalade.attacks.gradient_attacks import IterativeAttack
from fastmalade.attacks.target import Target, per_image_loss, reconstruct
from fastmalade.checks import check_number


@dataclass(frozen=True, kw_only=True)
class ReconstructionPGD(IterativeAttack):
    """R+PGD: PGD that also looks for points that the purifier does not change (001 sec. 2.1.2).

    The paper minimises the reconstruction loss minus the cross entropy; here the steps raise
    J(defended(x), y) - weight * |P(x) - x|^2, the square summed over pixels, in units of the value range, where P is
    the whole chain with the noise of the draw. With ``gradient="bpda"`` P(x) is a constant in the second term, which
    would vanish if P were the identity there too.

    Args:
        weight: factor of the reconstruction loss, >= 0; the paper gives none. A targeted attack lowers
            J + weight * |P(x) - x|^2.

    Raises:
        ValueError: ``gradient="blind"``: an attacker who does not know the purifier cannot ask what it changes.
    """

    weight: float = 0.1

    name: ClassVar[str] = "R+PGD"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", check_number("weight", self.weight))
        if self.gradient == "blind":
            raise ValueError("gradient: expected 'unrolled' or 'bpda' for R+PGD, got 'blind'")

    def _check_target(self, target: Target) -> None:
        _ = target.needs_defence

    def _objective(self, target: Target) -> Objective:
        defended = target.needs_defence
        sign = 1.0 if self.targeted else -1.0

        def objective(x: Tensor, labels: Tensor, seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
            logits, purified = defended.logits_and_purified(x, seed=seed, sample_ids=ids)
            chains = purified.unflatten(0, (-1, defended.n_chains))
            change = (chains - x[:, None]).square().flatten(2).sum(2).mean(1)
            return per_image_loss(logits, labels, self.loss) + sign * self.weight * change, logits

        return objective


@dataclass(frozen=True, kw_only=True)
class _CounterAttack(IterativeAttack):
    """What A and B have in common: they know the autoencoder but not the chain, and start at the image itself."""

    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient != "unrolled" or self.eot != 1:
            raise ValueError(
                f"{self.name}: expected gradient 'unrolled' and eot 1, its objective has neither chain nor noise; "
                f"got {self.gradient!r} and {self.eot}"
            )

    def _check_target(self, target: Target) -> None:
        _ = target.needs_defence


@dataclass(frozen=True, kw_only=True)
class CounterAttackA(_CounterAttack):
    """APuDAE's counter attack A: BIM on the classifier behind one pass of the autoencoder (003 eq. 14).

    The paper's text approximates the purification by "the autoencoder end-to-end network"; the printed equation
    leaves the autoencoder out, which would be an attack that does not know the defence. This is the text:
    J(classifier(r(x)), y) is raised. Success is judged behind the whole defence, as for every attack.
    """

    name: ClassVar[str] = "counter attack A"

    def _objective(self, target: Target) -> Objective:
        defended = target.needs_defence

        def objective(x: Tensor, labels: Tensor, seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
            logits = defended.classifier(reconstruct(defended.purifier, x))
            return per_image_loss(logits, labels, self.loss), logits

        return objective


@dataclass(frozen=True, kw_only=True)
class CounterAttackB(_CounterAttack):
    """APuDAE's counter attack B: BIM on the bare classifier that keeps the reconstruction error small (003 eq. 15).

    The steps raise J(classifier(x), y) - beta * |x - r(x)|^2, the square summed over pixels, in units of the value
    range. The equation prints +beta, which would raise the error, but the text asks for "less reconstruction error".

    Args:
        beta: weight of the reconstruction error, >= 0. The paper chooses "the worst possible attack" per data set
            and prints no value.
    """

    beta: float = 0.1

    name: ClassVar[str] = "counter attack B"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beta", check_number("beta", self.beta))

    def _objective(self, target: Target) -> Objective:
        defended = target.needs_defence
        sign = 1.0 if self.targeted else -1.0

        def objective(x: Tensor, labels: Tensor, seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
            logits = defended.classifier(x)
            error = torch.square(x - reconstruct(defended.purifier, x)).flatten(1).sum(1)
            return per_image_loss(logits, labels, self.loss) + sign * self.beta * error, logits

        return objective
