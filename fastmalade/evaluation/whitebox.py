"""Attacks by someone who knows the defence, judged by noise they have not seen: the robustness figures.

``fastmalade attack`` and the demonstration print the rows made here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fastmalade.attacks import ATTACKS, FGSM, Attack, AttackResult
from fastmalade.defenses.defended import DefendedClassifier, GradientMode

CLEAN, WORST = "none", "worst per image"
Progress = Callable[[str, int, int], None]


class AttackNameError(ValueError):
    """A name that stands for no attack, or no name at all."""


@dataclass(frozen=True)
class WhiteboxRow:
    """What one attack left of the accuracy.

    Attributes:
        attack: its name; "none" for clean images, "worst per image" for the images that survive every attack.
        n: number of images.
        accuracy_per_query: expected accuracy of one query of the defence, 0 to 1; None for the worst.
        majority_correct: images out of n that the judging rule counts as right.
        cosine: mean cosine between the gradients of the two halves of the noise draws, near 1 when the draws were
            enough; None where it was not recorded.
        gradients_per_image: input gradients, every noise draw counted; None for the worst.
        seconds: wall time; None for the worst.
        judged: the judging rule in words; None for the worst.
        warnings: of the attack's result; empty where there are none.
    """

    attack: str
    n: int
    accuracy_per_query: float | None
    majority_correct: int
    cosine: float | None
    gradients_per_image: float | None
    seconds: float | None
    judged: str | None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; the row of the worst has only its name and counts."""
        if self.attack == WORST:
            return {"attack": self.attack, "majority_correct": self.majority_correct, "n": self.n}
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class WhiteboxSettings:
    """Settings shared by the attacks of one table; see :class:`fastmalade.attacks.Attack` for their meaning."""

    epsilon: float = 0.3
    norm: str = "linf"
    steps: int = 40
    step_size: float | None = None
    eot: int = 10
    restarts: int = 1
    judge_chains: int = 9
    seed: int = 0

    def attacks(self, names: Sequence[str]) -> dict[str, Attack]:
        """Attacks with these settings.

        Args:
            names: NAME or NAME:GRADIENT, with NAME one of ``fastmalade.attacks.ATTACKS``.

        Returns:
            Attacks by the names given. Those whose objective has no noise (gradient "blind", APuDAE's counter
            attacks) take one draw; with several draws the cosine of their halves is recorded.

        Raises:
            AttackNameError: an unknown name, or no name at all.
            TypeError, ValueError: a setting that an attack refuses.
        """
        found: dict[str, Attack] = {}
        for item in names:
            name, _, gradient = item.partition(":")
            if name not in ATTACKS or (gradient and gradient not in get_args(GradientMode)):
                raise AttackNameError(
                    f"expected {', '.join(ATTACKS)}, each with or without "
                    f":{', :'.join(get_args(GradientMode))}, got {item!r}"
                )
            kind = ATTACKS[name]
            fields = {field.name for field in dataclasses.fields(kind)}
            chosen: dict[str, Any] = {key: value for key, value in vars(self).items() if key in fields}
            if gradient:
                chosen["gradient"] = gradient
            if name.startswith("apudae") or gradient == "blind":
                chosen["eot"] = 1
            found[item] = kind(**chosen, spread=chosen["eot"] > 1)
        if not found:
            raise AttackNameError("expected at least one attack, got none")
        return found


def whitebox_rows(
    defended: DefendedClassifier,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    checkpoint_dir: Path | None = None,
    progress: bool | Progress = True,
) -> Iterator[WhiteboxRow]:
    """Run attacks through a defence, and judge each image by queries with noise that no attack has seen.

    Args:
        defended: the defence and its classifier; each attack brings the gradient it uses.
        images: (n, C, H, W) in the value range of the defence.
        labels: int64 (n,).
        attacks: by name, at least one; clean images are judged by the rule and the seed of the first.
        batch_size: images attacked at once.
        checkpoint_dir: the state of each run is kept here; an interrupted one goes on from it.
        progress: show progress bars on standard error; or a function called as (attack, steps done, steps in all).

    Yields:
        A row for clean images, one per attack when it is over, and where there are several attacks one for the images
        that survive all of them.
    """
    first = next(iter(attacks.values()))
    # An attack of radius 0 changes nothing: its verdict is the clean accuracy, judged like the rest.
    clean = FGSM(epsilon=0.0, judge=first.judge, judge_chains=first.judge_chains, seed=first.seed)
    result = clean(defended, images, labels, batch_size=batch_size, progress=False)
    fooled = result.success
    yield _row(CLEAN, result)
    for index, (name, attack) in enumerate(attacks.items()):
        file = f"{index}-{name.replace(':', '-')}.safetensors"
        result = attack(
            defended,
            images,
            labels,
            batch_size=batch_size,
            checkpoint=None if checkpoint_dir is None else checkpoint_dir / file,
            progress=_told(progress, name) if callable(progress) else progress,
        )
        fooled = fooled | result.success
        yield _row(name, result)
    if len(attacks) > 1:
        yield WhiteboxRow(WORST, len(images), None, int((~fooled).sum()), None, None, None, None)


def _told(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def _row(name: str, result: AttackResult) -> WhiteboxRow:
    n = len(result.success)
    cosine = None
    if result.spread is not None and bool(torch.isfinite(result.spread).any()):
        cosine = float(result.spread.nanmean())
    return WhiteboxRow(
        attack=name,
        n=n,
        accuracy_per_query=1.0 - float(result.success_rate.mean()),
        majority_correct=n - int(result.success.sum()),
        cosine=cosine,
        gradients_per_image=float(result.gradients.double().mean()),
        seconds=round(result.seconds, 2),
        judged=result.judged,
        warnings=result.warnings,
    )
