"""Attacks made against the bare classifier, and what purification recovers: the papers' transfer protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation import AttackName, TransferRow, accuracy, attacked


@dataclass(frozen=True)
class AttackTable:
    """The rows of the table and the attacked images they were counted on.

    Attributes:
        rows: clean images first, then one row per attack.
        images: (attack, epsilon) -> (n, C, H, W) float32 in [0, 1].
    """

    rows: list[TransferRow]
    images: dict[tuple[str, float], Tensor]


def attack_table(
    classifier: nn.Module,
    purifiers: Mapping[str, Purifier],
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[tuple[AttackName, float]],
    *,
    steps: int,
    step_size: float,
    seed: int,
    progress: Callable[[str, int], None] | None = None,
) -> AttackTable:
    """Attack the classifier alone, then classify the images bare and behind each purifier.

    Differs from :func:`fastmalade.evaluation.transfer` in that it keeps the attacked images, which
    the figure and the whitebox block need, and that it counts with one chain per image and the seed of the
    demonstration.

    Args:
        classifier: (B, C, H, W) in [0, 1] to logits (B, K).
        purifiers: column name -> purifier.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        attacks: (name, epsilon) pairs.
        steps: steps of "pgd".
        step_size: length of each step of "pgd".
        seed: of the attacks' random starts and of the purifiers' noise.
        progress: called as (what, images done since the last call).
    """
    attacked_images: dict[tuple[str, float], Tensor] = {("none", 0.0): images}
    for attack, epsilon in attacks:
        attacked_images[attack, epsilon] = attacked(
            classifier,
            images,
            labels,
            attack,
            epsilon,
            steps=steps,
            step_size=step_size,
            seed=seed,
            progress=_reporter(progress, f"{attack} {epsilon:g}"),
        )
    rows = []
    for (attack_name, epsilon), adversarial in attacked_images.items():
        correct = {"bare": accuracy(classifier, adversarial, labels)}
        for name, purifier in purifiers.items():
            with torch.no_grad():
                correct[name] = accuracy(classifier, purifier(adversarial, seed=seed), labels)
        rows.append(TransferRow(attack_name, epsilon, len(images), correct))
    return AttackTable(rows, attacked_images)


def _reporter(progress: Callable[[str, int], None] | None, what: str) -> Callable[[int], None] | None:
    return None if progress is None else lambda count: progress(what, count)
