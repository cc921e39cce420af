"""The binarization test (Zimmermann, Brendel, Tramer & Carlini 2022): does the attack find what certainly exists?

For each image a readout of two classes is fitted on the model's features: noise well inside the ball is one class, a
single point on its boundary the other. An adversarial example exists by construction, so an attack that finds none is
too weak for this model, whatever it leaves of the accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import geometry
from fastmalade.attacks import PGD, GradientWarning
from fastmalade.attacks.eot import Judging, judge
from fastmalade.attacks.target import Target
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.seeds import derive_seed
from fastmalade.suites.report import Check, Status
from fastmalade.suites.subject import Subject
from fastmalade.suites.suite import BinarizationSpec, Suite

_INNER = 0.9  # radius of the noise inside, as a share of epsilon
_BOUNDARY_DRAWS = 9
_PASSES, _FAILS = 0.9, 0.75


@dataclass
class _Count:
    made: int = 0
    solved: int = 0
    by_chance: int = 0


def binarization_check(
    subject: Subject,
    images: Tensor,
    first: int,
    suite: Suite,
    spec: BinarizationSpec,
    seed: int,
    advanced: Callable[[int, int], None],
) -> Check:
    """Run the test on images (n, C, H, W), numbered from ``first``.

    ``advanced`` is told how many are done, and of how many.
    """
    count, n = _Count(), len(images)
    for index in range(n):
        _one_image(subject, images[index : index + 1], suite, spec, derive_seed(seed, first + index), count)
        advanced(index + 1, n)
    if n == 0:
        return Check("binarization", "N/A", "", f"it looks at the first {spec.images} images, not in this shard")
    if count.made < max(1, n // 2):
        return Check(
            "binarization", "N/A", f"{count.made} of {n} images have a test",
            "features of the boundary point cannot be told from noise inside the ball: the defence removes it",
        )  # fmt: skip
    rate = count.solved / count.made
    status: Status = "PASS" if rate >= _PASSES else "WARN" if rate >= _FAILS else "FAIL"
    return Check(
        "binarization", status, f"{count.solved} of {count.made} found, {count.by_chance} by random search",
        "adversarial examples that certainly exist; an attack that misses them is too weak to show robustness",
    )  # fmt: skip


def _one_image(subject: Subject, image: Tensor, suite: Suite, spec: BinarizationSpec, seed: int, count: _Count) -> None:
    low, high = subject.value_range
    inner = image.expand(spec.inner, *image.shape[1:])
    ids = torch.arange(spec.inner, device=image.device)
    noise = geometry.random_point(derive_seed(seed, 0), ids, inner, _INNER * suite.epsilon, suite.norm)
    inner = torch.cat([image, (inner + noise).clamp(low, high)])
    direction = geometry.steepest(geometry.normals(derive_seed(seed, 1), ids[:1], 0, image), suite.norm)
    boundary = (image + suite.epsilon * direction).clamp(low, high)
    readout = _Readout(subject.defended.classifier if subject.defended is not None else subject.model)
    model = _behind(subject, readout)
    draws = _BOUNDARY_DRAWS if subject.is_random else 1
    with torch.no_grad():
        inside = readout.features_of(model, inner, derive_seed(seed, 2))
        outside = readout.features_of(model, boundary.repeat(draws, 1, 1, 1), derive_seed(seed, 3))
    if not readout.fit(inside, outside):
        return
    count.made += 1
    truth = torch.zeros(1, dtype=torch.int64, device=image.device)
    attack = PGD(
        epsilon=suite.epsilon, norm=suite.norm, steps=spec.steps, step_size=suite.step_share * suite.epsilon,
        schedule=suite.schedule, eot=spec.eot if subject.is_random else 1, early_stop=True,
        gradient=subject.gradient,
        judge_chains=suite.judge_chains if subject.is_random else 1, seed=derive_seed(seed, 4),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)  # the check says it
        count.solved += int(attack(model, image, truth, progress=False, value_range=subject.own_range).success)
    # As many random points as the attack had queries.
    queries = spec.steps * attack.eot
    points = image.expand(queries, *image.shape[1:])
    found = geometry.random_point(derive_seed(seed, 5), torch.arange(queries, device=image.device), points,
                                  suite.epsilon, suite.norm)  # fmt: skip
    target = Target(model, attack.gradient, subject.own_range)
    with torch.no_grad():
        fooled, _ = judge(
            target, (points + found).clamp(low, high), truth.expand(queries), derive_seed(seed, 6),
            torch.arange(queries, device=image.device), Judging("majority", attack.judge_chains), rows=256,
        )  # fmt: skip
    count.by_chance += int(fooled.any())


def _behind(subject: Subject, readout: _Readout) -> Callable[..., Tensor]:
    """The readout where the classifier was: behind the same defence, with the same gradient."""
    if subject.defended is None:
        return readout
    defended = subject.defended
    return DefendedClassifier(defended.purifier, readout, gradient=defended.gradient).eval()


class _Readout(nn.Module):
    """Two logits from the features of a model: the inputs of its last linear layer, or its logits if it has none."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)] if isinstance(model, nn.Module) else []
        self.layer = layers[-1:]
        self.weight: Tensor | None = None
        self.centre: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, 2), or to features (B, F) before a readout is fitted."""
        features = self._features(x)
        if self.weight is None or self.centre is None:
            return features
        score = (features - self.centre) @ self.weight
        return torch.stack([-score, score], 1)

    def features_of(self, model: Callable[..., Tensor], x: Tensor, seed: int) -> Tensor:
        """Features (B, F) behind the whole defence."""
        if isinstance(model, DefendedClassifier):
            return model(x, seed=seed, sample_ids=torch.arange(len(x), device=x.device))
        return model(x)

    def fit(self, inside: Tensor, outside: Tensor) -> bool:
        """Fit the readout: the discriminant of the two classes, its threshold half-way between their closest scores.

        Returns:
            Whether the classes can be told apart, most draws of the boundary point on its own side.
        """
        inside, outside = inside.double(), outside.double()
        mean = inside.mean(0)
        spread = (inside - mean).T @ (inside - mean) / len(inside)
        ridge = 0.1 * spread.diagonal().mean().clamp_min(1e-12)
        weight = torch.linalg.solve(spread + ridge * torch.eye(len(spread)).to(spread), outside.mean(0) - mean)
        inner, outer = (inside - mean) @ weight, (outside - mean) @ weight
        nearest = outer.median()
        gap = nearest - inner.max()
        if not float(gap) > 0:
            return False
        weight = weight * (8.0 / float(gap))  # a gap of 8 logits on either side saturates nothing
        threshold = (inner.max() + nearest) / 2
        # A point on the plane of the threshold; in float32 a difference from it rounds less than a bias would.
        centre = mean + (outside.mean(0) - mean) * (threshold / ((outside.mean(0) - mean) @ weight * float(gap) / 8.0))
        self.weight, self.centre = weight.float(), centre.float()
        return True

    def _features(self, x: Tensor) -> Tensor:
        if not self.layer:
            return self.model(x)
        seen: list[Any] = []
        handle = self.layer[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return seen[-1].flatten(1)
