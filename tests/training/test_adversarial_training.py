"""Training on attacked images: of classifiers (Madry, ALP) and of purifiers through their chain."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Purifier
from fastmalade.attacks import PGD
from fastmalade.models import build_classifier
from fastmalade.models.registry import load_classifier
from fastmalade.training import (
    AdversarialClassifierSettings,
    CheckpointError,
    PurifierSettings,
    train_classifier,
    train_purifier,
)
from fastmalade.training import loop as training_loop
from fastmalade.training.adversarial import AdversarialSettings, attacked

QUICK = {"epochs": 2, "batch_size": 40, "attack_steps": 2, "progress": False}


@pytest.fixture
def few(digits):
    return digits[0][:100], digits[1][:100]


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(3)
    purifier = Purifier(Autoencoder(1, (3, 4), generator=generator), ChainConfig(3, 0.4, 0.1)).requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return purifier, build_classifier("D").requires_grad_(False).eval()


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_inner_attack_stays_in_its_ball_and_raises_the_loss(few, norm):
    classifier = load_classifier("mnist-c")
    epsilon = {"linf": 0.2, "l2": 2.0, "l1": 20.0}[norm]
    settings = AdversarialSettings(epsilon=epsilon, norm=norm, attack_steps=4)
    images, labels = few[0][:30], few[1][:30]
    moved = attacked(classifier, images, labels, settings, epsilon, seed=1)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    assert float((moved - images).flatten(1).norm(p=order, dim=1).max()) <= epsilon * (1 + 1e-5)
    assert float(moved.min()) >= 0.0
    assert float(moved.max()) <= 1.0
    before, after = (float(F.cross_entropy(classifier(x), labels)) for x in (images, moved))
    assert after > before + 0.1
    assert not moved.requires_grad
    assert torch.equal(moved, attacked(classifier, images, labels, settings, epsilon, seed=1))
    assert not torch.equal(moved, attacked(classifier, images, labels, settings, epsilon, seed=2))


def test_the_radius_rises():
    settings = AdversarialSettings(epsilon=0.3, ramp=0.4, first_share=0.3)
    assert [round(settings.epsilon_at(p), 6) for p in (0.0, 0.2, 0.4, 1.0)] == [0.09, 0.195, 0.3, 0.3]
    assert AdversarialSettings(epsilon=0.3, ramp=0.0).epsilon_at(0.0) == 0.3


def test_gradients_are_averaged_over_the_draws(few):
    seen = []

    def logits(x):
        seen.append(x)
        return x.flatten(1)[:, :10]

    settings = AdversarialSettings(epsilon=0.1, attack_steps=3, eot=4)
    attacked(logits, few[0], few[1], settings, 0.1, seed=0)
    assert len(seen) == 12
    assert all(torch.equal(seen[0], x) for x in seen[:4])
    assert not torch.equal(seen[0], seen[4])


@pytest.mark.slow
def test_a_classifier_becomes_robust(digits):
    torch.set_num_threads(1)  # small networks: threads would wait for each other
    images, labels = digits[0][:800], digits[1][:800]
    held_out = digits[0][800:], digits[1][800:]
    common = {"epochs": 14, "batch_size": 50, "progress": False, "validation": held_out, "num_classes": 10}
    plain, _ = train_classifier("D", images, labels, **common)
    settings = {"adversarial": "pgd", "epsilon": 0.1, "attack_steps": 5}
    robust, report = train_classifier("D", images, labels, **common, **settings)
    attack = PGD(epsilon=0.1, steps=20, step_size=0.02)
    left = [float((~attack(model, *held_out).success).float().mean()) for model in (plain, robust)]
    assert left[1] > left[0] + 0.2
    assert report.final["validation_attacked_accuracy"] == pytest.approx(left[1], abs=0.1)


def test_pairing_by_hand_and_alp_is_not_pgd(few):
    trained = {}
    for name, more in {"pgd": {}, "alp": {}, "unpaired": {"pairing": 0.0}}.items():
        kind = "pgd" if name == "pgd" else "alp"
        model, report = train_classifier("D", *few, adversarial=kind, num_classes=10, **QUICK, **more)
        trained[name] = parameters(model)
        assert report.settings["adversarial"] == kind
    assert not torch.equal(trained["pgd"], trained["alp"])
    assert not torch.equal(trained["alp"], trained["unpaired"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"adversarial": "fgsm"}, ValueError, "adversarial: expected 'pgd' or 'alp', got 'fgsm'"),
        ({"adversarial": "pgd", "epsilon": -0.1}, ValueError, "epsilon: expected a positive number"),
        ({"adversarial": "pgd", "norm": "l7"}, ValueError, "norm: expected one of linf, l2, l1, got 'l7'"),
        ({"adversarial": "pgd", "attack_steps": 0}, ValueError, "attack_steps: expected at least 1"),
        ({"adversarial": "alp", "pairing": -1}, ValueError, "pairing: expected a number of at least 0"),
        ({"epsilon": 0.3}, TypeError, "epsilon"),
    ],
)
def test_unfit_settings_of_a_classifier(few, change, error, message):
    with pytest.raises(error, match=message):
        train_classifier("D", *few, epochs=1, progress=False, **change)


@pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
def test_what_is_trained_and_what_is_left_alone(few, small, joint):
    purifier, classifier = small
    before = parameters(purifier), parameters(classifier)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    trained, behind, report = train_purifier(
        purifier, classifier, *few, train_classifier=joint, validation=few, attacked_validation=20, **QUICK
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(parameters(purifier), before[0])
    assert torch.equal(parameters(classifier), before[1])
    assert not torch.equal(parameters(trained), before[0])
    assert torch.equal(parameters(behind), before[1]) != joint
    assert not any(p.requires_grad for model in (trained, behind) for p in model.parameters())
    assert trained.chain == purifier.chain
    assert set(report.final) >= {"validation_accuracy", "validation_attacked_accuracy"}
    again, _, _ = train_purifier(
        purifier, classifier, *few, train_classifier=joint, validation=few, attacked_validation=20, **QUICK
    )
    assert torch.equal(parameters(trained), parameters(again))


def test_the_loss_by_hand(few, small, monkeypatch):
    from fastmalade.training import purifier as module

    purifier, classifier = small
    seen = []
    exact = training_loop._one_epoch

    def watched(model, optimizer, settings, epoch, n_images, batch_loss, *rest):
        def loss(indices):
            value = batch_loss(indices)
            seen.append((indices, value.detach()))
            return value

        return exact(model, optimizer, settings, epoch, n_images, loss, *rest)

    monkeypatch.setattr(training_loop, "_one_epoch", watched)
    monkeypatch.setattr(module, "attacked", lambda logits, images, *rest: images)
    still = Purifier(purifier.autoencoder, ChainConfig(3, 0.4, 0.0))
    options = {**QUICK, "epochs": 1, "learning_rate": 1e-12, "denoising": 10.0, "sigma2": 1e-12}
    train_purifier(still, classifier, *few, **options)
    for indices, value in seen:
        images, labels = few[0][indices], few[1][indices]
        with torch.no_grad():
            entropy = F.cross_entropy(classifier(still(images, seed=1)), labels)
            error = (still.autoencoder(images) - images).square().mean()
        assert float(value) == pytest.approx(float(entropy + 10.0 * error), rel=1e-4)


def test_a_resumed_training_ends_with_the_same_bits_and_the_best_epoch(few, small, tmp_path, monkeypatch):
    purifier, classifier = small
    options = {**QUICK, "epochs": 3, "validation": few, "attacked_validation": 30, "train_classifier": True}
    whole = train_purifier(purifier, classifier, *few, **options)
    original, ran = training_loop._one_epoch, []

    def interrupted(model, optimizer, settings, epoch, *rest):
        if epoch == 2 and ran.count(2) == 0:
            ran.append(2)
            raise KeyboardInterrupt
        return original(model, optimizer, settings, epoch, *rest)

    monkeypatch.setattr(training_loop, "_one_epoch", interrupted)
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train_purifier(purifier, classifier, *few, **options, checkpoint=checkpoint)
    resumed = train_purifier(purifier, classifier, *few, **options, checkpoint=checkpoint)
    for a, b in zip(whole[:2], resumed[:2], strict=True):
        assert torch.equal(parameters(a), parameters(b))
    scores = [row["validation_attacked_accuracy"] for row in resumed[2].history]
    with pytest.raises(CheckpointError, match=r"epsilon: expected 0\.2, got 0\.3"):
        train_purifier(purifier, classifier, *few, **options, checkpoint=checkpoint, epsilon=0.2)
    best = torch.load(checkpoint, weights_only=True)["model"]["best_score"]
    assert float(best) == pytest.approx(max(scores))


def test_training_stops_early(few, small):
    purifier, classifier = small
    options = {**QUICK, "epochs": 9, "learning_rate": 1e-12, "validation": few, "attacked_validation": 10}
    _, _, report = train_purifier(purifier, classifier, *few, **options, patience=2)
    assert len(report.history) == 3


@pytest.mark.slow
def test_a_purifier_becomes_robust_under_the_exact_gradient(digits):
    torch.set_num_threads(1)
    images, labels = digits[0][:800], digits[1][:800]
    held_out = digits[0][800:900], digits[1][800:900]
    classifier, _ = train_classifier("D", images, labels, epochs=10, batch_size=50, progress=False, num_classes=10)
    purifier = Purifier.from_pretrained("malade-mnist")
    attack = PGD(epsilon=0.2, steps=10, step_size=0.04, eot=2)
    options = {"epochs": 4, "batch_size": 50, "learning_rate": 3e-3, "epsilon": 0.2, "attack_steps": 4, "ramp": 0.2}
    trained, behind, _ = train_purifier(purifier, classifier, images, labels, progress=False, **options)
    left = [
        1.0 - float(attack(DefendedClassifier(*pair), *held_out).success_rate.mean())
        for pair in ((purifier, classifier), (trained, behind))
    ]
    assert left[1] > left[0] + 0.1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epsilon": 0.0}, ValueError, "epsilon: expected a positive number, got 0.0"),
        ({"clean_share": 1.5}, ValueError, "clean_share: expected a number from 0 to 1"),
        ({"denoising": -1.0}, ValueError, "denoising: expected a number of at least 0"),
        ({"patience": -1}, ValueError, "patience: expected at least 0"),
        ({"eot": 0}, ValueError, "eot: expected at least 1"),
        ({"momentum": 1}, TypeError, "momentum"),
    ],
)
def test_unfit_settings_of_a_purifier(few, small, change, error, message):
    with pytest.raises(error, match=message):
        train_purifier(*small, *few, **QUICK | change)


def test_unfit_purifiers(few, small):
    purifier, classifier = small
    with pytest.raises(ValueError, match=r"purifier: expected value range \(0.0, 1.0\), got \(-1.0, 1.0\)"):
        train_purifier(
            Purifier(purifier.autoencoder, purifier.chain, value_range=(-1.0, 1.0)), classifier, *few, **QUICK
        )
    with pytest.raises(TypeError, match="purifier: expected a module r to train, got function"):
        train_purifier(Purifier(lambda x: x, purifier.chain), classifier, *few, **QUICK)
    assert PurifierSettings().attack_steps == 6
    assert AdversarialClassifierSettings().adversarial == "pgd"
