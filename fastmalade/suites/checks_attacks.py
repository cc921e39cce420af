"""Checks of what the attacks did: were they strong enough, and do their figures fit together?"""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from fastmalade.attacks import AttackResult
from fastmalade.checks import rounding_of_range
from fastmalade.evaluation.accuracy import wilson_interval
from fastmalade.seeds import derive_seed
from fastmalade.suites.report import Check, Row, Status, worst_first
from fastmalade.suites.subject import Subject
from fastmalade.suites.suite import AttackSpec, Suite

# Twice the standard deviation of a count: a difference of paired answers beyond that is not luck.
_SIGMAS = 2.0
_EOT_FAILS, _EOT_WARNS = 0.2, 0.5
_MOVING = 0.05
_BLACK_BOX_POINTS = 0.002
_NOISE_POINTS = 0.05


class Found:
    """Results of the attacks of a suite by what they are for; any may be missing."""

    def __init__(self, suite: Suite, rows: list[Row], results: dict[str, AttackResult]) -> None:
        self.suite, self.rows, self.results = suite, {row.attack: row for row in rows}, results
        self.specs = [spec for spec in suite.attacks if spec.name in results]

    def main(self, gradient: str) -> AttackSpec | None:
        """The longest attack at the suite's epsilon with that gradient."""
        found = [spec for spec in self.specs if spec.is_main and spec.gradient == gradient]
        return max(found, key=lambda spec: spec.gradients(True), default=None)

    def exact(self) -> AttackSpec:
        """The attack that everything is measured by."""
        found = self.main("unrolled")
        assert found is not None
        return found


def attack_checks(subject: Subject, found: Found, images: Tensor, labels: Tensor, ids: Tensor) -> list[Check]:
    """All of them, for the attacks that ran.

    Args:
        subject: the model.
        found: what the attacks found.
        images, labels, ids: (n, C, H, W) and (n,) of the images attacked, and what numbers them for the noise.
    """
    return [
        _informed(found),
        _moved(found, images),
        _eot(subject, found),
        _converged(found),
        _restarts(found),
        _silent(subject, found),
        _ordering(found),
        _radius(found),
        _unbounded(subject, found),
        _nothing_done(subject, found, images, labels, ids),
        _known_noise(found),
        _in_ball(subject, found, images),
        _eight_bits(subject, found, labels, ids),
    ]


def black_box_check(found: Found, square: Tensor | None, why_not: str | None) -> Check:
    """Square against the exact gradient on the same images: paired, beyond luck and 0.2 points.

    Args:
        found: what the attacks found.
        square: share of fooled queries (m,) of the first images, or None if it did not run.
        why_not: the reason then.
    """
    if square is None:
        return Check("black box", "N/A", "", f"Square did not run: {why_not}")
    exact = found.results[found.exact().name].success[: len(square)]
    return _weaker_finds_no_more(
        "black box", "Square, which uses no gradient,", square > 0.5, exact, least=_BLACK_BOX_POINTS,
        meaning="where it does, gradients are masked",
    )  # fmt: skip


def _informed(found: Found) -> Check:
    spec = found.exact()
    result = found.results[spec.name]
    n = len(result.success)
    steps = result.gradients // int(result.settings["eot"])
    unfooled = ~result.success & (steps > 0)
    masked = int((unfooled & (2 * (result.zero_gradients + result.non_finite_gradients) >= steps)).sum())
    figure = f"{masked} of {n} images"
    if masked:
        status: Status = "FAIL" if masked > 0.02 * n else "WARN"
        return Check(
            "gradients lead somewhere", status, figure,
            "count as robust although most of their gradients were zero or not finite: no evidence of robustness",
        )  # fmt: skip
    return Check("gradients lead somewhere", "PASS", figure, "count as robust for want of a gradient")


def _moved(found: Found, images: Tensor) -> Check:
    result = found.results[found.exact().name]
    n = len(result.success)
    same = int(((result.adversarial == images).flatten(1).all(1) & ~result.success).sum())
    status: Status = "FAIL" if same > 0.02 * n else "WARN" if same else "PASS"
    return Check(
        "images moved", status, f"{same} of {n} adversarial images equal the clean ones", "and count as robust"
    )  # fmt: skip


def _eot(subject: Subject, found: Found) -> Check:
    spec = found.exact()
    result = found.results[spec.name]
    if not subject.is_random:
        return Check("noise draws", "N/A", "", "nothing is random")
    if result.spread is None:
        return Check("noise draws", "FAIL", "1 draw", "a random defence was attacked along gradients of single draws")
    left = ~result.success
    values = result.spread[:, :, left] if bool(left.any()) else result.spread
    halves = float(values.nanmedian())
    if math.isnan(halves):
        return Check("noise draws", "PASS", "", "every image fell at the first step")
    # Of the whole mean, twice as many draws as a half: Spearman and Brown's formula for the agreement of the two.
    figure = 2 * halves / (1 + halves) if halves > 0 else halves
    status: Status = "FAIL" if figure < _EOT_FAILS else "WARN" if figure < _EOT_WARNS else "PASS"
    return Check(
        "noise draws", status, f"cosine {figure:.2f} at {spec.eot} draws",
        "between the mean gradient and that of as many other draws, images that held; near 0 the attack followed noise",
    )  # fmt: skip


def _converged(found: Found) -> Check:
    spec = found.exact()
    result = found.results[spec.name]
    left = ~result.success
    if not bool(left.any()):
        return Check("converged", "PASS", "no image held", "the attack needed no more steps")
    if spec.steps < 10:
        return Check("converged", "FAIL", f"{spec.steps} steps", "too few steps to see whether the loss still rises")
    losses = result.losses[:, :, left].double()
    span = losses.amax(1) - losses.amin(1)
    tenth = max(2, math.ceil(spec.steps / 10))
    half = max(1, tenth // 2)
    last = losses[:, -half:].mean(1) - losses[:, -tenth:-half].mean(1)
    moved = (last / span.clamp_min(1e-9)).nanmedian()
    figure = float(moved)
    status: Status = "FAIL" if figure > 3 * _MOVING else "WARN" if figure > _MOVING else "PASS"
    return Check(
        "converged", status, f"{100 * figure:.0f}% of the rise in the last tenth of the steps",
        f"median over images that held; above {100 * _MOVING:.0f}% more steps would find more",
    )  # fmt: skip


def _restarts(found: Found) -> Check:
    spec = found.exact()
    result = found.results[spec.name]
    if spec.restarts == 1:
        return Check("restarts", "WARN", "1 start", "one start tells nothing about others")
    n = len(result.success)
    late = int((result.success & result.losses[-1, 0].isfinite()).sum())
    status: Status = "PASS" if late <= max(1, 0.01 * n) else "WARN"
    return Check(
        "restarts", status, f"{late} of {n} images fell at the last of {spec.restarts} starts",
        "as long as the last start finds more than one in a hundred, more starts would find more",
    )  # fmt: skip


def _silent(subject: Subject, found: Found) -> Check:
    result = found.results[found.exact().name]
    certain = result.losses > math.log(subject.classes)  # then the true class is not the likeliest
    passed_by = int(((certain & result.losses.isfinite()).any(0).any(0) & ~result.success).sum())
    n = len(result.success)
    status: Status = "PASS" if passed_by <= 0.02 * n else "WARN"
    return Check(
        "silent success", status, f"{passed_by} of {n} images",
        "were wrong on the way, for the draws of that step, and count as robust; early stopping queries them again",
    )  # fmt: skip


def _ordering(found: Found) -> Check:
    exact = found.results[found.exact().name].success
    checks = []
    for gradient, name in (("bpda", "BPDA"), ("blind", "the attack on the bare classifier")):
        spec = found.main(gradient)
        if spec is None:
            continue
        check = _weaker_finds_no_more(
            "strength", f"{name}, which knows less,", found.results[spec.name].success, exact, least=0.01,
            meaning="where it does, the exact gradient is masked or its attack too short",
        )  # fmt: skip
        checks.append(check)
    return worst_first(checks)[0] if checks else Check("strength", "N/A", "", "there is no defence to know less of")


def _weaker_finds_no_more(
    name: str, who: str, weaker: Tensor, stronger: Tensor, *, least: float, meaning: str
) -> Check:
    more, fewer, n = int((weaker & ~stronger).sum()), int((~weaker & stronger).sum()), len(weaker)
    excess = more - fewer
    beyond_luck = excess > _SIGMAS * math.sqrt(more + fewer) and excess > least * n
    status: Status = "FAIL" if beyond_luck else "WARN" if more > max(2, 0.05 * n) else "PASS"
    return Check(
        name, status, f"{more} of {n} images fell to it alone, {fewer} to the exact gradient alone",
        f"{who} should find no more than the exact gradient; {meaning}",
    )  # fmt: skip


def _radius(found: Found) -> Check:
    chosen = [
        found.rows[s.name]
        for s in found.specs
        if s.kind == "pgd" and s.gradient == "unrolled" and s.norm is None and not (s.unbounded or s.known_noise)
    ]
    radii = sorted({row.epsilon for row in chosen})
    if len(radii) < 2:
        return Check("radius", "N/A", "", "one radius only")
    # Of several attacks at one radius the strongest counts.
    accuracies = [min(row.accuracy() for row in chosen if row.epsilon == radius) for radius in radii]
    n = chosen[0].n
    rise = max(later - earlier for earlier, later in itertools.pairwise(accuracies))
    shown = ", ".join(f"{100 * a:.0f}% at {radius:.3g}" for radius, a in zip(radii, accuracies, strict=True))
    status: Status = "FAIL" if rise > max(0.02, 2 / math.sqrt(n) * 0.5) else "PASS"
    return Check("radius", status, shown, "accuracy falls as the ball grows")


def _unbounded(subject: Subject, found: Found) -> Check:
    spec = next((s for s in found.specs if s.unbounded), None)
    if spec is None:
        return Check("unbounded", "N/A", "", "not in this suite")
    row = found.rows[spec.name]
    low, _ = wilson_interval(row.majority, row.n)
    chance = 1.0 / subject.classes
    status: Status = "FAIL" if low > chance else "PASS"
    return Check(
        "unbounded", status, f"{100 * row.accuracy():.0f}% right, chance is {100 * chance:.0f}%",
        "an attack that may change every pixel at will must leave no more than chance; what is left is masked",
    )  # fmt: skip


def _nothing_done(subject: Subject, found: Found, images: Tensor, labels: Tensor, ids: Tensor) -> Check:
    clean = next(row for row in found.rows.values() if row.gradient == "none" and row.epsilon == 0.0)
    again = subject.fooled_share(images, labels, found.suite.judge_chains, derive_seed(0, 77), ids)
    n = len(labels)
    before, after = clean.one_shot, round(float((1.0 - again).sum()))
    spread = _SIGMAS * math.sqrt(2 * max(1.0, n * 0.25)) if subject.is_random else 0.0
    status: Status = "FAIL" if abs(before - after) > max(spread, 0.0) else "PASS"
    return Check(
        "no perturbation", status, f"{100 * after / n:.1f}% right, {100 * before / n:.1f}% of the clean control",
        "an attack of radius 0 by the same rule of judging has no more success than clean images: errors that the "
        "defence makes by itself are no success",
    )  # fmt: skip


def _known_noise(found: Found) -> Check:
    spec = next((s for s in found.specs if s.known_noise), None)
    if spec is None:
        return Check("known noise", "N/A", "", "nothing is random, or the noise cannot be held still")
    known, fresh = found.rows[spec.name], found.rows[found.exact().name]
    # The attacks stop at an image when most queries are wrong: the other scores of such images are not the lowest.
    hidden = fresh.accuracy() - known.accuracy()
    status: Status = "WARN" if hidden > _NOISE_POINTS else "PASS"
    return Check(
        "known noise", status, f"{100 * known.accuracy():.1f}% left, {100 * fresh.accuracy():.1f}% with fresh noise",
        "where an attacker who knows the noise of the query leaves less, so much robustness is hidden randomness",
    )  # fmt: skip


def _in_ball(subject: Subject, found: Found, images: Tensor) -> Check:
    furthest, outside = 0.0, 0
    low, high = subject.value_range
    slack = rounding_of_range(images.dtype, low, high)
    for result in found.results.values():
        difference = (result.adversarial - images[: len(result.adversarial)]).flatten(1).double()
        length = {"linf": difference.abs().amax(1), "l2": difference.norm(dim=1), "l1": difference.abs().sum(1)}
        reach = length[result.norm]
        furthest = max(furthest, float((reach / max(result.epsilon, 1e-12)).max())) if result.epsilon > 0 else furthest
        beyond = reach > result.epsilon + slack * (1 if result.norm == "linf" else difference.shape[1] ** 0.5)
        out_of_range = (result.adversarial < low) | (result.adversarial > high)
        outside += int((beyond | out_of_range.flatten(1).any(1)).sum())
    return Check(
        "in the ball", "FAIL" if outside else "PASS",
        f"{outside} images outside, furthest {100 * furthest:.1f}% of the way",
        "perturbations keep to their radius and images to their range",
    )  # fmt: skip


def _eight_bits(subject: Subject, found: Found, labels: Tensor, ids: Tensor) -> Check:
    result = found.results[found.exact().name]
    low, high = subject.value_range
    unit = ((result.adversarial - low) / (high - low) * 255).round() / 255 * (high - low) + low
    fooled = subject.fooled_share(unit, labels, found.suite.judge_chains, derive_seed(0, 78), ids) > 0.5
    lost, n = int((result.success & ~fooled).sum()), len(labels)
    status: Status = "WARN" if lost > max(2, 0.05 * n) else "PASS"
    return Check(
        "eight bits", status, f"{lost} of {n} images",
        "no longer fool the model when they are rounded to the 256 values of a file",
    )  # fmt: skip
