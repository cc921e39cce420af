"""The overpowered attack on INC, and training of the classifier against it (paper 004, eq. 3 and 6)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_count, check_labels, check_positive, check_unit_images
from fastmalade.models.modes import evaluation_mode
from fastmalade.noise import standard_normal
from fastmalade.seeds import check_seed, derive_seed
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs

PAPER_DISTANCE = 5e-5
PAPER_VALID_DISTANCE = 1.25e-4


@dataclass(frozen=True)
class CodePairs:
    """Pairs of codes whose images are close and whose classes are meant to be far apart.

    Attributes:
        first, second: codes z and z', (n, latent_dim).
        distance: mean over pixels of (G(z) - G(z'))^2, (n,).
        divergence: Kullback-Leibler divergence in nats between the class probabilities of G(z) and G(z'), (n,).
        changed: whether the two have different classes, bool (n,).
        valid: whether ``distance`` is below the limit asked for, bool (n,).
    """

    first: Tensor
    second: Tensor
    distance: Tensor
    divergence: Tensor
    changed: Tensor
    valid: Tensor

    @property
    def share_changed(self) -> float:
        """Share of the valid pairs that change class; NaN without valid pairs."""
        count = int(self.valid.sum())
        return int((self.valid & self.changed).sum()) / count if count else math.nan


def find_pairs(
    generator: nn.Module,
    classifier: Callable[[Tensor], Tensor],
    n_pairs: int,
    *,
    n_steps: int = 10_000,
    distance: float = PAPER_DISTANCE,
    valid_distance: float = PAPER_VALID_DISTANCE,
    rate: float = 0.02,
    multiplier_rate: float = 0.1,
    spread: float = 0.3,
    seed: int = 0,
    start: tuple[Tensor, Tensor] | None = None,
) -> CodePairs:
    """Search for code pairs that are close in image space and far in class probability.

    Alternating steps, all pairs in one batch: Adam on (z, z') raises

        |p(G(z)) - p(G(z'))|^2 - lambda (d(z, z') - distance),   d the mean squared difference of the images,

    and the log of each pair's lambda grows by ``multiplier_rate`` times (d / distance - 1), at most 1. The result for a
    pair is the point on its path with the largest difference in probability among those closer than
    ``valid_distance``, or the last point if there is none. This is eq. 3 with its sign corrected (it prints + with
    lambda >= 0; eq. 6 and 9 have lambda <= 0) and its constraint divided by the number of pixels.

    Args:
        generator: G, (B, latent_dim) -> (B, C, H, W), with attribute ``latent_dim``.
        classifier: (B, C, H, W) in the range of G -> logits (B, K); used in eval mode.
        n_pairs: pairs, >= 1.
        n_steps: 10,000 in the paper.
        distance: eta^2 per pixel. The paper's 2e-4 is for images in [-1, 1]: 5e-5 in [0, 1].
        valid_distance: limit below which a pair counts as close; the paper's 0.0005 is 1.25e-4 in [0, 1].
        rate: of Adam on the codes. The paper prints neither this nor the next two.
        multiplier_rate: step of log lambda; "much more aggressive" than the other.
        spread: z' starts at z plus that many standard deviations: at z' = z the objective has no gradient.
        seed: of the starting codes.
        start: (z, z') to start from, in place of random ones.

    Raises:
        TypeError, ValueError: a count, rate or distance out of its range.

    Source: paper 004, sections 2.2 and 4.3.
    """
    check_count("n_pairs", n_pairs, 1)
    check_count("n_steps", n_steps, 0)
    for name, value in (("distance", distance), ("rate", rate), ("multiplier_rate", multiplier_rate)):
        check_positive(name, value)
    first, second = _starts(generator, n_pairs, spread, check_seed(seed)) if start is None else start
    codes = torch.cat([first, second]).detach().clone().requires_grad_(True)
    multiplier = torch.full((n_pairs,), 0.1 / distance, dtype=codes.dtype, device=codes.device)
    optimizer = torch.optim.Adam([codes], lr=rate)
    best = codes.detach().clone()
    score = torch.full((n_pairs,), -torch.inf, dtype=codes.dtype, device=codes.device)
    with evaluation_mode(classifier, generator), torch.enable_grad():
        for t in range(n_steps + 1):
            gap, logits = _compare(generator, classifier, codes)
            probabilities = logits.softmax(1)
            objective = (probabilities[:n_pairs] - probabilities[n_pairs:]).square().sum(1)
            # The two players circle each other, so the best point that is close enough is kept along the path.
            better = (gap < valid_distance) & (objective > score)
            score = torch.where(better, objective, score).detach()
            chosen = better | torch.isinf(score)
            best = torch.where(torch.cat([chosen, chosen])[:, None], codes, best).detach()
            if t == n_steps:
                break
            loss = (multiplier * (gap - distance) - objective).sum()
            (codes.grad,) = torch.autograd.grad(loss, codes)
            optimizer.step()
            # Steps on log lambda: with steps on lambda a pair would part far more slowly than it came together.
            excess = (gap.detach() / distance - 1.0).clamp_max(1.0)
            multiplier = multiplier * torch.exp(multiplier_rate * excess)
    return _judged(generator, classifier, best[:n_pairs], best[n_pairs:], valid_distance)


def judge_pairs(pairs: CodePairs, generator: nn.Module, classifier: Callable[[Tensor], Tensor]) -> CodePairs:
    """The same codes under another classifier, with divergence and change of class computed again."""
    return dataclasses.replace(_judged(generator, classifier, pairs.first, pairs.second, 0.0), valid=pairs.valid)


@dataclass(frozen=True)
class RobustSettings(LoopSettings):
    """Settings of :func:`train_robust`; the shared ones are described at ``LoopSettings``.

    Attributes:
        mix: mu, weight of the pairs' term against the cross entropy, in (0, 1).
        pairs: pairs per batch.
        inner_steps: steps of the search for each batch, 500 in the paper.
        distance: see :func:`find_pairs`.
    """

    epochs: int = 1
    mix: float = 0.5
    pairs: int = 32
    inner_steps: int = 500
    distance: float = PAPER_DISTANCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mix < 1.0:
            raise ValueError(f"mix: expected a number in (0, 1), got {self.mix!r}")
        check_count("pairs", self.pairs, 1)
        check_count("inner_steps", self.inner_steps, 0)
        check_positive("distance", self.distance)


def train_robust(
    classifier: nn.Module,
    generator: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> TrainingReport:
    """Train a classifier further, in place, so that close images of the generator get close class probabilities.

    Args:
        classifier: (B, C, H, W) in [0, 1] -> logits (B, K); its parameters that require a gradient are trained.
        generator: see :func:`find_pairs`; its parameters are not changed.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`RobustSettings`.

    Raises:
        ValueError: images, labels or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: paper 004, eq. 6 and section 4.3.
    """
    chosen = RobustSettings(**settings)
    images = check_unit_images(images)
    check_labels(labels, len(images), int(labels.max()) + 1)

    def batch_loss(indices: Tensor) -> Tensor:
        # The loop has seeded torch's generator for this epoch; each batch draws its seed from it.
        seed = int(torch.randint(2**62, ()))
        pairs = find_pairs(
            generator, classifier, chosen.pairs, n_steps=chosen.inner_steps, distance=chosen.distance, seed=seed
        )
        with torch.no_grad():
            near = generator(torch.cat([pairs.first, pairs.second]))
        # Without dropout, which would tell two equal images apart; the search has looked at this classifier, too.
        with evaluation_mode(classifier):
            first, second = classifier(near).softmax(1).chunk(2)
        apart = (first - second).square().sum(1).mean()
        return chosen.mix * apart + (1 - chosen.mix) * F.cross_entropy(classifier(images[indices]), labels[indices])

    return run_epochs(
        classifier,
        chosen,
        len(images),
        batch_loss,
        dict,
        checkpoint=checkpoint,
        progress=progress,
        label="robust training",
    )


def _starts(generator: nn.Module, n_pairs: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    latent: Any = generator.latent_dim
    like = next(generator.parameters())
    ids = torch.arange(n_pairs)
    base, away = (standard_normal(derive_seed(seed, k), ids, 0, (latent,)).to(like) for k in (0, 1))
    return base, base + spread * away


def _judged(
    generator: nn.Module, classifier: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, valid_distance: float
) -> CodePairs:
    with evaluation_mode(classifier, generator), torch.no_grad():
        gap, logits = _compare(generator, classifier, torch.cat([first, second]))
    p, q = F.log_softmax(logits, dim=1).chunk(2)
    return CodePairs(
        first=first,
        second=second,
        distance=gap,
        divergence=(p.exp() * (p - q)).sum(1),
        changed=p.argmax(1) != q.argmax(1),
        valid=gap < valid_distance,
    )


def _compare(generator: nn.Module, classifier: Callable[[Tensor], Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (n,) and logits (2n, K) of codes (2n, latent_dim), partners n apart."""
    images = generator(codes)
    first, second = images.chunk(2)
    return (first - second).square().flatten(1).mean(1), classifier(images)
