"""Checks of the model itself, before any attack: can it be differentiated, and is what is attacked what is deployed?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.gradcheck.check import check_gradient
from fastmalade.gradcheck.report import GradientReport
from fastmalade.suites.report import Check, Status
from fastmalade.suites.subject import CALLS, Subject

# Images that the finite differences look at: each costs some twenty evaluations in float64.
_IMAGES = 4
# Half of a neighbourhood that no human sees; Pintor et al. (2022) look at the loss there.
_NEIGHBOURHOOD = 8 / 255
_UNSTABLE = 1.0


def model_checks(subject: Subject, images: Tensor, labels: Tensor, was_training: bool) -> list[Check]:
    """All of them; ``images`` (n, C, H, W) and ``labels`` (n,) are those evaluated."""
    found = [_eval_mode(subject, was_training), _logits(subject, images), _noise(subject)]
    reaches = _reaches(subject, images, labels)
    found.append(reaches)
    found += [_deployed_path(subject, images), _inside(subject, images), _contraction(subject, images)]
    if reaches.status != "FAIL":
        found += _gradient(subject, images)
        found.append(_stable(subject, images, labels))
    return found


def _eval_mode(subject: Subject, was_training: bool) -> Check:
    if not isinstance(subject.model, nn.Module):
        return Check("eval mode", "N/A", "", "the model is no module")
    if was_training:
        return Check(
            "eval mode", "WARN", "training mode",
            "the model came in training mode and was evaluated in eval mode; deploy it with .eval() too",
        )  # fmt: skip
    return Check("eval mode", "PASS", "eval mode", "dropout and batch statistics are as in deployment")


def _logits(subject: Subject, images: Tensor) -> Check:
    with torch.no_grad():
        rows = subject.logits(images[:32], 3)
    if bool((rows >= 0).all()) and _are_one(rows.double().sum(1)):
        return Check(
            "logits", "FAIL", "rows sum to 1",
            "the model gives probabilities: a cross entropy of them takes the softmax twice, and its gradient vanishes",
        )  # fmt: skip
    spread = float((rows.max(1).values - rows.min(1).values).median())
    kind = "log-probabilities" if _are_one(rows.double().exp().sum(1)) else "logits"
    return Check("logits", "PASS", f"{kind}, spread {spread:.3g}", "the loss is that of a softmax taken once")


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _noise(subject: Subject) -> Check:
    if not subject.is_random:
        return Check("noise", "PASS", f"{CALLS} equal calls", "nothing is random: one query judges an image")
    return Check(
        "noise",
        "PASS",
        f"{CALLS} calls differ",
        "random: gradients are averaged over draws (EOT), images judged by many",
    )


def _reaches(subject: Subject, images: Tensor, labels: Tensor) -> Check:
    leaf = images[:_IMAGES].clone().requires_grad_(True)
    gradient = None
    with torch.enable_grad():
        loss = F.cross_entropy(subject.logits(leaf, 0), labels[:_IMAGES], reduction="sum")
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if gradient is None:
        return Check(
            "gradient exists", "FAIL", "none",
            "something in the model cuts the gradient off (x.detach(), torch.no_grad(), numpy): no attack with "
            "gradients can be run, and none was",
        )  # fmt: skip
    return Check("gradient exists", "PASS", "", "the logits depend on the images in autograd's eyes")


def _deployed_path(subject: Subject, images: Tensor) -> Check:
    few = images[:32]
    with torch.no_grad():
        deployed = subject.logits(few, 1)
    with torch.enable_grad():
        attacked = subject.logits(few.clone().requires_grad_(True), 1).detach()
    difference = float((deployed - attacked).abs().max())
    scale = float(deployed.abs().max().clamp_min(1e-12))
    figure = "same bits" if torch.equal(deployed, attacked) else f"largest difference {difference:.2g}"
    # A library may choose another convolution where it records; another path differs by more than rounding.
    if not difference <= 1e-3 * scale:
        return Check(
            "deployed path", "FAIL", figure,
            "with gradients switched on the model computes something else than in deployment: what was attacked is not "
            "what defends",
        )  # fmt: skip
    return Check("deployed path", "PASS", figure, "with and without gradients, for the same noise")


def _inside(subject: Subject, images: Tensor) -> Check:
    with _gradients_counted() as count, torch.no_grad():
        subject.model(images[:2])
    if count():
        return Check(
            "optimisation inside", "WARN", f"{count()} gradients in a forward pass",
            "the defence optimises at inference: a gradient through it may be an approximation; compare BPDA, Square",
        )  # fmt: skip
    return Check("optimisation inside", "PASS", "", "the forward pass computes no gradients")


def _contraction(subject: Subject, images: Tensor) -> Check:
    """How the defence changes the distance of an image and a disturbed copy of it when both have the same noise."""
    if subject.defended is None:
        return Check("contraction", "N/A", "", "there is no defence that could be looked at alone")
    few, purifier = images[:32], subject.defended.purifier
    low, high = subject.value_range
    generator = torch.Generator(device="cpu").manual_seed(1)
    signs = torch.randint(0, 2, few.shape, generator=generator).to(few) * 2 - 1
    near = (few + 0.1 * (high - low) * signs).clamp(low, high)
    with torch.no_grad():
        purified, other = purifier(few, seed=4), purifier(near, seed=4)
    ratio = (purified - other).flatten(1).norm(dim=1) / (few - near).flatten(1).norm(dim=1).clamp_min(1e-12)
    return Check(
        "contraction", "PASS", f"{float(ratio.median()):.2f} of the distance is left",
        "between images and copies disturbed by random signs of a tenth of the range, same noise for both: what the "
        "defence takes away by itself, without hidden randomness",
    )  # fmt: skip


def _gradient(subject: Subject, images: Tensor) -> list[Check]:
    try:
        report = _gradient_report(subject, images[:_IMAGES])
    except ValueError as error:
        return [Check("derivative", "WARN", "", f"finite differences could not be taken: {error}")]
    found = []
    status: Status
    derivative = report["derivative"]
    if report["repeatable"].status == "FAIL":
        found.append(Check("derivative", "N/A", "", "the model's noise cannot be held still for finite differences"))
    else:
        status = "PASS" if derivative.status == "PASS" else "FAIL"
        found.append(Check("derivative", status, f"relative error {derivative.value:.2g}", derivative.detail))
    zero, finite = report["zero"], report["finite"]
    broken = finite.status == "FAIL"
    status = "FAIL" if broken or zero.status == "FAIL" else "PASS"
    what = f"{100 * (zero.value or 0):.0f}% exactly 0"
    if broken:
        what += f", {100 * (finite.value or 0):.0f}% NaN or infinite"
    explained = "shares of the gradient's components that lead an attack nowhere"
    if status == "FAIL":
        explained += ": rounding, saturation or a backward pass of zero masks it"
    found.append(Check("gradient components", status, what, explained))
    if any(check.name == "budgets" for check in report.checks):
        budgets = report["budgets"]
        found.append(Check("memory budgets", "PASS" if budgets.status == "PASS" else "FAIL", "", budgets.detail))
    return found


def _gradient_report(subject: Subject, few: Tensor) -> GradientReport:
    # A little inside the range: a clamp at its ends has one-sided derivatives.
    low, high = subject.value_range
    inside = low + (high - low) * (0.02 + 0.96 * (few - low) / (high - low))
    try:
        return check_gradient(subject.model, inside)
    except ValueError:
        return check_gradient(subject.model, inside.float(), dtype=torch.float32)


def _stable(subject: Subject, images: Tensor, labels: Tensor) -> Check:
    """How far the margin of the true class jumps close to the images, against how far the classes lie apart."""
    few, truth = images[:32], labels[:32]
    low, high = subject.value_range
    radius = _NEIGHBOURHOOD * (high - low)
    generator = torch.Generator(device="cpu").manual_seed(0)
    jumps = []
    with torch.no_grad():
        margin = _margin(subject.logits(few, 2), truth)
        for _ in range(4):
            noise = torch.rand(few.shape, generator=generator).to(few) * 2 - 1
            near = (few + radius * noise).clamp(low, high)
            jumps.append((_margin(subject.logits(near, 2), truth) - margin).abs())
    jump = torch.stack(jumps).mean(0) / margin.abs().clamp_min(1e-6)
    figure = float(jump.median())
    unstable = not figure <= _UNSTABLE
    return Check(
        "stable loss", "WARN" if unstable else "PASS", f"margin moves by {100 * figure:.0f}%",
        "median over images, under random noise of 8/255 of the range; where it jumps, single gradients mislead",
    )  # fmt: skip


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).max(1).values


@contextlib.contextmanager
def _gradients_counted() -> Iterator[Callable[[], int]]:
    """Count the calls of autograd from inside a forward pass."""
    calls = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return function(*args, **options)

        return counted

    with (
        mock.patch.object(torch.autograd, "grad", counting(torch.autograd.grad)),
        mock.patch.object(torch.autograd, "backward", counting(torch.autograd.backward)),
    ):
        yield lambda: calls
