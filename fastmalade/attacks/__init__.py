"""Attacks over any defended model, with the gradient and the noise of the defence under control.

    attack = PGD(epsilon=0.3, norm="linf", steps=40, step_size=0.01, eot=16, gradient="unrolled", seed=0)
    result = attack(defended, images, labels)

For general-purpose attacks use foolbox, ART or pyautoattack through :mod:`fastmalade.attacks.libraries`.
"""

from __future__ import annotations

from fastmalade.attacks.base import Attack
from fastmalade.attacks.eot import EotGradient, eot_gradient
from fastmalade.attacks.gradient_attacks import FGSM, MIM, PGD, IterativeAttack, RandomFGSM
from fastmalade.attacks.libraries import AutoAttackReport, SeededCalls, art_classifier, autoattack_rand, foolbox_model
from fastmalade.attacks.masking import GradientWarning
from fastmalade.attacks.purifier_attacks import CounterAttackA, CounterAttackB, ReconstructionPGD
from fastmalade.attacks.state import AttackCheckpointError, AttackResult

# Names by which commands call the attacks.
ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "rfgsm": RandomFGSM,
    "pgd": PGD,
    "mim": MIM,
    "rpgd": ReconstructionPGD,
    "apudae-a": CounterAttackA,
    "apudae-b": CounterAttackB,
}

__all__ = [
    "ATTACKS",
    "FGSM",
    "MIM",
    "PGD",
    "Attack",
    "AttackCheckpointError",
    "AttackResult",
    "AutoAttackReport",
    "CounterAttackA",
    "CounterAttackB",
    "EotGradient",
    "GradientWarning",
    "IterativeAttack",
    "RandomFGSM",
    "ReconstructionPGD",
    "SeededCalls",
    "art_classifier",
    "autoattack_rand",
    "eot_gradient",
    "foolbox_model",
]
