"""A small attack that knows the defence: PGD through the whole chain, beside the attack that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmalade.defenses.defended import DefendedClassifier, GradientMode
from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation import AttackName, accuracy, attacked


@dataclass(frozen=True)
class WhiteboxSetting:
    """One whitebox attack, Linf PGD from a random start.

    Attributes:
        gradient: "unrolled" (exact) or "bpda".
        steps: number of steps.
        step_size: length of each, in units of the pixel range.
        n_chains: noise draws averaged for each gradient (EOT).
    """

    gradient: GradientMode
    steps: int = 40
    step_size: float = 0.01
    n_chains: int = 4


@dataclass(frozen=True)
class WhiteboxRow:
    """How many images the defended classifier still gets right.

    Attributes:
        attack: what was done, in words.
        n: number of images.
        correct: right answers behind the purifier, noise not seen by the attack.
    """

    attack: str
    n: int
    correct: int


class FreshNoise(nn.Module):
    """A defended classifier whose noise differs at every call, yet repeats with ``seed``.

    The attacker must not optimise against one fixed noise, and the demonstration must be repeatable: call
    number i uses the i-th number of a generator of its own.
    """

    def __init__(self, defended: DefendedClassifier, seed: int) -> None:
        super().__init__()
        self.defended = defended
        self._seeds = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to logits (B, K), with the next noise."""
        seed = int(torch.randint(2**62, (), generator=self._seeds))
        return self.defended(x, seed=seed)


def whitebox_table(
    purifier: Purifier,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    settings: Sequence[WhiteboxSetting],
    transferred: tuple[AttackName, Tensor],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[WhiteboxRow]:
    """Accuracy of the defended classifier: clean, under a transferred attack, and under whitebox attacks.

    EOT: each step's gradient is that of the cross entropy of the probability averaged over ``n_chains``
    chains with independent noise, drawn anew at every step. Scores are those of the deployed defence, one
    chain per image, with noise that no attack has seen. The last row counts the images that survive every
    whitebox attack listed.

    Args:
        purifier: the defence.
        classifier: what it defends.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        epsilon: radius of the Linf ball.
        settings: whitebox attacks to run.
        transferred: name of an attack and its result (n, C, H, W) against the bare classifier.
        seed: of the attacks and of the noise.
        progress: called with 1 after each attack.
    """
    deployed = FreshNoise(DefendedClassifier(purifier, classifier), seed=_derived(seed, 0))
    rows = [WhiteboxRow("none", len(images), accuracy(deployed, images, labels))]
    name, attacked_images = transferred
    rows.append(
        WhiteboxRow(f"{name} against the bare classifier", len(images), accuracy(deployed, attacked_images, labels))
    )
    survived = torch.ones(len(images), dtype=torch.bool)
    for index, setting in enumerate(settings, start=1):
        target = FreshNoise(
            DefendedClassifier(purifier, classifier, gradient=setting.gradient, n_chains=setting.n_chains),
            seed=_derived(seed, index),
        )
        adversarial = attacked(
            target,
            images,
            labels,
            "pgd",
            epsilon,
            steps=setting.steps,
            step_size=setting.step_size,
            seed=seed,
        )
        with torch.no_grad():
            right = deployed(adversarial).argmax(1) == labels
        survived &= right
        rows.append(WhiteboxRow(describe(setting), len(images), int(right.sum())))
        if progress is not None:
            progress(1)
    if len(settings) > 1:
        rows.append(WhiteboxRow("worst of the whitebox attacks, per image", len(images), int(survived.sum())))
    return rows


def describe(setting: WhiteboxSetting) -> str:
    """One whitebox attack in words."""
    through = {
        "unrolled": "the exact unrolled gradient",
        "bpda": "BPDA",
        "blind": "the bare classifier's gradient",
    }
    return (
        f"pgd through {through[setting.gradient]}, {setting.steps} steps of {setting.step_size:g}, "
        f"EOT over {setting.n_chains} noise draws"
    )


def _derived(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index) % 2**62
