"""Intervals, accuracy, attacks and the transfer table."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from fastmalade.evaluation import (
    ATTACK_CHUNK,
    accuracy,
    attacked,
    predictions,
    transfer_table,
    wilson_interval,
)
from fastmalade.evaluation import transfer as transfer_module
from fastmalade.models import build_classifier


@pytest.fixture(scope="module")
def linear(digits):
    """A small linear classifier trained on some digits: quick to attack, and not at random."""
    images, labels = digits
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model[1].reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 7), (9897, 10_000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_interval_agrees_with_scipy(successes, n, level):
    expected = binomtest(successes, n).proportion_ci(level, method="wilson")
    low, high = wilson_interval(successes, n, level)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_interval_refuses_what_is_no_proportion(arguments):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(*arguments)


def test_accuracy_counts_whatever_the_batch_size(digits, linear):
    images, labels = digits[0][:101], digits[1][:101]
    expected = sum(int(linear(x[None]).argmax()) == int(y) for x, y in zip(images, labels, strict=True))
    assert [accuracy(linear, images, labels, size) for size in (1, 33, 101, 500)] == [expected] * 4
    assert predictions(linear, images[:0]).shape == (0,)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attacks_stay_in_the_ball_and_in_range_and_hurt(digits, linear, attack):
    images, labels = digits[0][:60], digits[1][:60]
    adversarial = attacked(linear, images, labels, attack, 0.1, steps=10, step_size=0.03)
    assert adversarial.shape == images.shape
    assert float((adversarial - images).abs().max()) <= 0.1 + 1e-6
    assert float(adversarial.min()) >= 0
    assert float(adversarial.max()) <= 1
    assert accuracy(linear, adversarial, labels) < accuracy(linear, images, labels)


def test_fgsm_is_equation_1(digits, linear):
    images, labels = digits[0][:20], digits[1][:20]
    weight = linear[1].weight.double()
    x = images.flatten(1).double()
    probabilities = torch.softmax(x @ weight.T + linear[1].bias.double(), 1)
    gradient = (probabilities - torch.eye(10, dtype=torch.float64)[labels]) @ weight
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    got = attacked(linear, images, labels, "fgsm", 0.1).flatten(1)
    assert float((got - expected).abs().max()) < 1e-6


def test_attacks_repeat_and_leave_the_global_generator_alone(digits, linear):
    images, labels = digits[0][: ATTACK_CHUNK + 10], digits[1][: ATTACK_CHUNK + 10]
    state = torch.get_rng_state()
    whole = attacked(linear, images, labels, "pgd", 0.2, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    tail = attacked(linear, images[ATTACK_CHUNK:], labels[ATTACK_CHUNK:], "pgd", 0.2, steps=2, first_chunk=1)
    assert torch.equal(whole[ATTACK_CHUNK:], tail)
    assert not torch.equal(whole, attacked(linear, images, labels, "pgd", 0.2, steps=2, seed=1))


def test_unknown_attacks_and_negative_radii_are_errors(digits, linear):
    with pytest.raises(ValueError, match=r"expected one of .*'deepfool'"):
        attacked(linear, *[part[:2] for part in digits], "deepfool", 0.1)
    with pytest.raises(ValueError, match="epsilon: expected"):
        attacked(linear, *[part[:2] for part in digits], "pgd", math.nan)


def test_transfer_table_counts_and_resumes(digits, linear, tmp_path, monkeypatch):
    n = ATTACK_CHUNK + 30
    images, labels = digits[0][:n], digits[1][:n]
    purifiers = {"same": lambda x: x, "blank": torch.zeros_like}
    calls = []
    original = transfer_module.attacked

    def counting(*args, **kwargs):
        if len(calls) == 1:
            calls.append("cut")
            raise KeyboardInterrupt
        calls.append(kwargs["first_chunk"])
        return original(*args, **kwargs)

    monkeypatch.setattr(transfer_module, "attacked", counting)
    arguments = (linear, purifiers, images, labels, [("pgd", 0.1)])
    with pytest.raises(KeyboardInterrupt):
        transfer_table(*arguments, steps=3, cache_dir=tmp_path)
    clean, row = transfer_table(*arguments, steps=3, cache_dir=tmp_path)
    assert calls == [0, "cut", 1]
    assert clean.correct["bare"] == clean.correct["same"] == accuracy(linear, images, labels)
    adversarial = original(linear, images, labels, "pgd", 0.1, steps=3)
    assert row.correct["bare"] == row.correct["same"] == accuracy(linear, adversarial, labels)
    assert row.correct["blank"] == accuracy(linear, torch.zeros_like(images), labels)
    assert (row.attack, row.epsilon, row.n) == ("pgd", 0.1, n)
    transfer_table(build_classifier("D"), {}, images[:5], labels[:5], [("pgd", 0.1)], steps=1, cache_dir=tmp_path)
    assert len(calls) == 4  # another classifier: nothing of the cache applied
