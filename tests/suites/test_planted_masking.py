"""Each way to fake robustness that we know is called by its name; a model without any passes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from masked import ZeroBackward
from torch import nn

from fastmalade import DefendedClassifier, Purifier, evaluate
from fastmalade.suites import AttackSpec

pytest.importorskip("art")


class Front(nn.Module):
    """A classifier behind something that masks its gradient."""

    def __init__(self, classifier, front):
        super().__init__()
        self.classifier, self.front = classifier, front

    def forward(self, x):
        return self.classifier(self.front(x))


def report(model, digits, suite):
    return evaluate(model.eval() if isinstance(model, nn.Module) else model, *digits, suite=suite, progress=False)


def failing(found):
    return {check.name for check in found.checks if check.status == "FAIL"}


def test_a_plain_classifier_passes(classifier, some_digits, suite):
    found = report(classifier, some_digits, suite)
    assert found.verdict == "PASS", str(found)
    assert found.row("exact").majority <= 1
    assert found.row("none").majority == 16


def test_rounding_to_eight_levels(classifier, some_digits, suite):
    found = report(Front(classifier, lambda x: (x * 7).round() / 7), some_digits, suite)
    assert {"gradients lead somewhere", "gradient components", "unbounded"} <= failing(found)


def test_a_saturating_sigmoid(classifier, some_digits, suite):
    found = report(Front(classifier, lambda x: torch.sigmoid(2000 * (x - 0.5))), some_digits, suite)
    assert {"gradient components"} <= failing(found)
    assert found.verdict == "FAIL"


def test_a_detached_input(classifier, some_digits, suite):
    found = report(Front(classifier, lambda x: x.detach()), some_digits, suite)
    assert failing(found) == {"gradient exists"}
    # What needs no gradient was done all the same.
    assert [row.attack for row in found.rows] == ["none", "Square"]


def test_a_backward_pass_of_zero(classifier, some_digits, suite):
    found = report(Front(classifier, ZeroBackward.apply), some_digits, suite)
    assert {"derivative", "gradient components", "gradients lead somewhere", "unbounded"} <= failing(found)


def test_a_backward_pass_of_nan(classifier, some_digits, suite):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    found = report(Front(classifier, Broken.apply), some_digits, suite)
    assert {"gradient components", "gradients lead somewhere"} <= failing(found)


def test_a_forward_pass_that_does_nothing_while_gradients_are_on(classifier, some_digits, suite):
    purifier = Purifier.from_pretrained("malade-mnist")

    def front(x):
        return x if torch.is_grad_enabled() else purifier.purify(x, seed=0)

    found = report(Front(classifier, front), some_digits, suite)
    assert "deployed path" in failing(found)


def test_noise_so_large_that_single_gradients_are_useless(classifier, some_digits, suite):
    class NoisyGradient(nn.Module):
        def forward(self, x):
            noise = 1e4 * torch.randn(len(x), 10, x[0].numel())
            nothing = (x - x.detach()).flatten(1)[:, None]
            return classifier(x) + (noise * nothing).sum(2) + 1e-3 * torch.randn(len(x), 10)

    found = report(NoisyGradient(), some_digits, suite)
    assert "noise draws" in failing(found)
    assert found.check("noise").figure == "5 calls differ"


def test_an_attack_of_two_steps(classifier, some_digits, suite):
    short = dataclasses.replace(suite, epsilon=0.1, attacks=(AttackSpec("exact", "", "unrolled", steps=2),))
    found = report(classifier, some_digits, short)
    assert failing(found) == {"converged"}
    assert found.check("restarts").status == "WARN"


class RightFourTimesInFive(nn.Module):
    """Knows the answers, and gives them with probability 0.8 whatever comes in."""

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images.flatten(1), labels

    def forward(self, x):
        nearest = torch.cdist(x.detach().flatten(1), self.images).argmin(1)
        right = torch.rand(len(x)) < 0.8
        answers = torch.where(right, self.labels[nearest], (self.labels[nearest] + 1) % 10)
        return 10 * nn.functional.one_hot(answers, 10).to(x) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_errors_that_come_without_an_attack_are_no_success(some_digits, suite):
    found = report(RightFourTimesInFive(*some_digits), some_digits, suite)
    assert {"gradients lead somewhere", "unbounded"} <= failing(found)
    control = found.check("no perturbation")
    assert control.status == "PASS"
    assert abs(found.row("none").one_shot / 16 - 0.8) < 0.25


def test_probabilities_instead_of_logits(classifier, some_digits, suite):
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = classifier

        def forward(self, x):
            return self.classifier(x).softmax(1)

    assert "logits" in failing(report(Softmax(), some_digits, suite))


def test_optimisation_and_training_mode_are_named(classifier, some_digits, suite):
    def front(x):
        with torch.enable_grad():
            start = x.detach().clone().requires_grad_(True)
            (step,) = torch.autograd.grad(start.square().sum(), start)
        return x - 0.01 * step

    model = Front(classifier, front).train()
    found = evaluate(model, *some_digits, suite=suite, progress=False)
    assert found.check("optimisation inside").status == "WARN"
    assert found.check("eval mode").status == "WARN"
    assert model.training


def test_malade_is_not_masked(classifier, some_digits, suite):
    found = report(DefendedClassifier(Purifier.from_pretrained("malade-mnist"), classifier), some_digits, suite)
    assert not failing(found), str(found)
    assert [row.attack for row in found.rows] == [
        "none", "blind", "BPDA", "exact", "half", "unbounded", "known", "Square",
    ]  # fmt: skip
    assert found.row("blind").majority > found.row("exact").majority
    for name in ("deployed path", "derivative", "memory budgets", "noise draws", "unbounded"):
        assert found.check(name).status == "PASS"
    for row in found.rows:
        assert row.worst <= min(row.one_shot, row.majority)


def test_a_blind_gradient_is_called_no_derivative(classifier, some_digits, suite):
    model = DefendedClassifier(Purifier.from_pretrained("malade-mnist"), classifier, gradient="bpda")
    found = report(model, some_digits, suite)
    assert "derivative" in failing(found)
