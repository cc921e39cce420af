"""Glue to foolbox, ART and pyautoattack, and what they make of a stochastic defence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastmalade import DefendedClassifier, Purifier
from fastmalade.attacks import SeededCalls, art_classifier, autoattack_rand, foolbox_model


def test_seeded_calls_differ_and_repeat(defended, few):
    images = few[0]
    outputs = []
    for _ in range(2):
        model = SeededCalls(defended, seed=4)
        outputs.append([model(images), model(images)])
        # As attack libraries do; it must make no difference.
        torch.manual_seed(0)
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(*outputs[0])
    assert model.calls == 2
    assert not torch.equal(SeededCalls(defended, seed=5)(images), outputs[0][0])


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_foolbox(purifier, linear, few, value_range):
    foolbox = pytest.importorskip("foolbox")
    low, high = value_range
    scaled = Purifier(purifier.autoencoder, purifier.chain, value_range=value_range)
    defended = DefendedClassifier(scaled, torch.nn.Sequential(Shift(low, high), linear), n_chains=2)
    model = foolbox_model(defended, seed=1)
    assert tuple(model.bounds) == value_range
    images = few[0] * (high - low) + low
    attack = foolbox.attacks.LinfPGD(steps=4, rel_stepsize=0.3)
    torch.manual_seed(0)
    _, clipped, success = attack(model, images, few[1], epsilons=0.2 * (high - low))
    assert float((clipped - images).abs().max()) <= 0.2 * (high - low) + 1e-6
    assert int(success.sum()) >= 12


class Shift(torch.nn.Module):
    """Maps a value range to [0, 1], which the classifier takes."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        return (x - self.low) / (self.high - self.low)


def test_foolbox_ead(defended, few):
    foolbox = pytest.importorskip("foolbox")
    attack = foolbox.attacks.EADAttack(binary_search_steps=2, steps=30, initial_stepsize=0.1, initial_const=10.0)
    model = foolbox_model(defended, seed=1)
    _, clipped, success = attack(model, few[0][:8], few[1][:8], epsilons=30.0)
    assert float(clipped.min()) >= 0.0
    assert float(clipped.max()) <= 1.0
    assert int(success.sum()) >= 4


def test_art_pgd_and_boundary(defended, few):
    pytest.importorskip("art")
    from art.attacks.evasion import BoundaryAttack, ProjectedGradientDescent

    images, labels = few[0].numpy()[:8], few[1].numpy()[:8]
    model = art_classifier(defended, input_shape=(1, 28, 28), n_classes=10, seed=2)
    attack = ProjectedGradientDescent(model, eps=0.2, eps_step=0.06, max_iter=4, verbose=False)
    attacked = attack.generate(images, y=labels)
    assert float(np.abs(attacked - images).max()) <= 0.2 + 1e-6
    assert int((model.predict(attacked).argmax(1) == labels).sum()) <= 3
    np.random.seed(0)
    attack = BoundaryAttack(model, targeted=False, max_iter=5, num_trial=5, sample_size=5, init_size=20, verbose=False)
    attacked = attack.generate(images[:2], y=labels[:2])
    assert attacked.shape == (2, 1, 28, 28)
    assert bool(np.isfinite(attacked).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_reports_its_own_and_the_fresh_verdict(defended, few, norm):
    pytest.importorskip("pyautoattack")
    images, labels = few
    before, state = images.clone(), torch.random.get_rng_state()
    options = {
        "epsilon": {"linf": 0.08, "l2": 1.0}[norm],
        "norm": norm,
        "eot": 2,
        "steps": 6,
        "batch_size": 7,
        "seed": 3,
    }
    report = autoattack_rand(defended, images, labels, **options)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    order = {"linf": np.inf, "l2": 2}[norm]
    sizes = np.linalg.norm((report.adversarial - images).flatten(1).numpy(), ord=order, axis=1)
    assert sizes.max() <= options["epsilon"] + 1e-5
    assert int(report.found.sum()) >= 4
    assert bool((sizes[~report.found.numpy()] == 0).all())
    with torch.no_grad():
        own = torch.stack([defended(report.adversarial).argmax(1) != labels for _ in range(60)]).double().mean(0)
    # 9 and 60 queries of the same images: their means differ by sampling only.
    assert abs(float(own.mean() - report.success_rate.mean())) < 0.15
    assert 0 <= report.library_accuracy <= report.rejudged_accuracy + 0.25
    again = autoattack_rand(defended, images, labels, **options)
    assert torch.equal(again.adversarial, report.adversarial)
    assert again.model_calls == report.model_calls > 2 * 6


def test_single_draws_overstate_an_attack(purifier, linear, digits):
    """With much noise and next to no budget the library still finds wrong answers: those of the noise."""
    pytest.importorskip("pyautoattack")
    purifier.chain = purifier.chain.replace(noise_scale=0.2)
    defended = DefendedClassifier(purifier, linear)
    images, labels = digits[0][::25], digits[1][::25]
    report = autoattack_rand(defended, images, labels, epsilon=1e-4, eot=1, steps=8, seed=0)
    assert report.library_accuracy < report.rejudged_accuracy - 0.1


def test_reseeding_by_the_library_does_not_repeat_the_noise(defended, few, monkeypatch):
    pytest.importorskip("pyautoattack")
    reseeded = []
    monkeypatch.setattr(torch.random, "manual_seed", recording(torch.random.manual_seed, reseeded))
    states = []
    handle = defended.purifier.register_forward_hook(
        lambda module, args, kwargs, out: states.append((args[0].detach().clone(), out.detach().clone())),
        with_kwargs=True,
    )
    autoattack_rand(defended, *few, epsilon=0.05, eot=3, steps=2, seed=1)
    handle.remove()
    assert len(reseeded) >= 2
    compared = 0
    for (x, out), (following, other) in itertools.pairwise(states):
        if x.shape == following.shape and torch.equal(x, following):
            compared += 1
            assert not torch.equal(out, other)
    # The EOT loop calls with the same images again and again.
    assert compared >= 4


def recording(function, calls):
    def record(*args):
        calls.append(args)
        return function(*args)

    return record


def test_wrong_arguments(defended, purifier, linear, few):
    for call in (
        lambda: foolbox_model(linear),
        lambda: art_classifier(linear, input_shape=(1, 28, 28), n_classes=10),
        lambda: autoattack_rand(linear, *few, epsilon=0.1),
        lambda: SeededCalls(linear, 0),
    ):
        with pytest.raises(TypeError, match="DefendedClassifier"):
            call()
    with pytest.raises(ValueError, match="norm"):
        autoattack_rand(defended, *few, epsilon=0.1, norm="l0")
    with pytest.raises(ValueError, match="steps"):
        autoattack_rand(defended, *few, epsilon=0.1, steps=0)
    scaled = DefendedClassifier(Purifier(purifier.autoencoder, purifier.chain, value_range=(-1, 1)), linear)
    with pytest.raises(ValueError, match="value range"):
        autoattack_rand(scaled, *few, epsilon=0.1)
    with pytest.raises(ValueError, match="at least one"):
        autoattack_rand(defended, few[0][:0], few[1][:0], epsilon=0.1)


@pytest.mark.parametrize("missing", ["foolbox", "art", "pyautoattack"])
def test_a_missing_library_is_named(defended, few, monkeypatch, missing):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    call = {
        "foolbox": lambda: foolbox_model(defended),
        "art": lambda: art_classifier(defended, input_shape=(1, 28, 28), n_classes=10),
        "pyautoattack": lambda: autoattack_rand(defended, *few, epsilon=0.1),
    }[missing]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastmalade\[attacks\]'"):
        call()
