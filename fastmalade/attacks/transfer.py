"""Attacks made on a substitute and handed to the defence that it stands in for (paper 004, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmalade.attacks.base import Attack
from fastmalade.attacks.eot import Judging, judge
from fastmalade.attacks.target import Model, Target
from fastmalade.checks import check_count
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.models.modes import evaluation_mode
from fastmalade.progress import progress_bar
from fastmalade.seeds import check_seed, derive_seed


@dataclass(frozen=True)
class TransferResult:
    """What an attack on a substitute does to the target.

    Attributes:
        adversarial: (n, C, H, W), made against the substitute.
        valid: bool (n,): substitute and target both classify the image correctly before the attack. The paper's
            figures, and the rates below, are over these images.
        fooled_substitute: bool (n,).
        fooled: bool (n,): the target misclassifies the adversarial image, by the attack's rule ``judge``.
    """

    adversarial: Tensor
    valid: Tensor
    fooled_substitute: Tensor
    fooled: Tensor

    @property
    def rate(self) -> float:
        """Share of the valid images whose attack fools the target; NaN without valid images."""
        return self._share(self.fooled)

    @property
    def substitute_rate(self) -> float:
        """Share of the valid images whose attack fools the substitute; NaN without valid images."""
        return self._share(self.fooled_substitute)

    def _share(self, found: Tensor) -> float:
        count = int(self.valid.sum())
        return int((found & self.valid).sum()) / count if count else math.nan


def transfer_attack(
    attack: Attack,
    substitute: Model,
    target: DefendedClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> TransferResult:
    """Attack a substitute, and let the target judge the result.

    With a substitute of :func:`fastmalade.attacks.substitute.train_substitute_classifier` this is the substitute-model
    attack, with a :class:`CombinedSubstitute` the combined attack. The paper uses FGSM, and BIM, which is
    ``PGD(..., steps=20, random_start=False)``.

    Args:
        attack: an untargeted attack; its ``judge`` and ``judge_chains`` also apply to the target, which is queried
            only once if it is not random.
        substitute: (B, C, H, W) in the purifier's value range -> logits (B, K).
        target: the defence; its gradient is not used.
        images: (n, C, H, W) float32 or float64 in the purifier's value range.
        labels: true classes, int64 (n,).
        batch_size: images attacked and judged at once.
        seed: of the target's noise; the attack has its own seed.
        progress: show progress bars on standard error.

    Raises:
        TypeError: a target or an attack of another type, or labels that are not int64.
        ValueError: a targeted attack, or images that do not fit.

    Source: paper 004, sections 4.2.2 and 4.2.3, Figures 5 and 12.
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"attack: expected an attack, got {type(attack).__name__}")
    if attack.targeted:
        raise ValueError("attack: expected an untargeted attack, got a targeted one")
    if not isinstance(target, DefendedClassifier):
        raise TypeError(f"target: expected a DefendedClassifier, got {type(target).__name__}")
    check_count("batch_size", batch_size, 1)
    check_seed(seed)
    result = attack(
        substitute,
        images,
        labels,
        batch_size=batch_size,
        value_range=target.purifier.value_range,
        progress=progress,
    )
    # Only its value is needed, so any gradient mode does; every defence has this one.
    asked = Target(target, "bpda")
    rows = asked.chains_per_call(images, attack.max_bytes)
    judging = Judging(attack.judge, attack.judge_chains if target.purifier.is_random else 1)
    ids = torch.arange(len(images), device=images.device)
    wrong = torch.zeros(2, len(images), dtype=torch.bool, device=images.device)
    right = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    with evaluation_mode(substitute, target), torch.no_grad(), progress_bar(enabled=progress) as bar:
        task = bar.add_task("judging by the target", total=len(images))
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            y = labels[part]
            right[part] = substitute(images[part]).argmax(1) == y
            for k, x in enumerate((images[part], result.adversarial[part])):
                # Separate noise for each: otherwise one unlucky draw would count against both.
                noise = derive_seed(seed, k)
                wrong[k, part] = judge(asked, x, y, noise, ids[part], judging, rows=rows)[0]
            bar.advance(task, len(y))
    return TransferResult(result.adversarial, right & ~wrong[0], result.success, wrong[1])
