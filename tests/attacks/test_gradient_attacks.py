"""FGSM, R+FGSM, PGD, MIM, R+PGD and the counter attacks: step formulas, balls, seeds, strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F

from fastmalade import DefendedClassifier, Purifier, geometry, load_classifier
from fastmalade.attacks import (
    FGSM,
    MIM,
    PGD,
    CounterAttackA,
    CounterAttackB,
    RandomFGSM,
    ReconstructionPGD,
)
from fastmalade.seeds import derive_seed

RADII = {"linf": 0.2, "l2": 2.0, "l1": 15.0}
SMALL = {"progress": False}


def numpy_gradient(linear, x, y, sign=1.0):
    """Gradient of the cross entropy of softmax regression, written down in float64."""
    weight, bias = (p.double().numpy() for p in linear.parameters())
    flat = x.reshape(len(x), -1)
    probabilities = np.exp(log_softmax(flat @ weight.T + bias, axis=1))
    return sign * ((probabilities - np.eye(10)[y]) @ weight).reshape(x.shape)


def numpy_direction(g, norm):
    flat = g.reshape(len(g), -1)
    if norm == "linf":
        return np.sign(g)
    if norm == "l2":
        return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).reshape(g.shape)
    out = np.zeros_like(flat)
    count = math.ceil(0.01 * flat.shape[1])
    for row, values in zip(out, flat, strict=True):
        largest = np.argsort(-np.abs(values))[:count]
        row[largest] = np.sign(values[largest]) / count
    return out.reshape(g.shape)


def numpy_into_ball(x, centre, epsilon, norm):
    delta = (x - centre).reshape(len(x), -1)
    if norm == "linf":
        delta = np.minimum(np.maximum(delta, -epsilon), epsilon)
    elif norm == "l2":
        delta = delta * np.minimum(1.0, epsilon / np.maximum(np.linalg.norm(delta, axis=1, keepdims=True), 1e-300))
    else:
        for row in delta:
            # The threshold by bisection: the soft-thresholded vector has the wanted norm.
            low, high = 0.0, np.abs(row).max()
            if np.abs(row).sum() > epsilon:
                for _ in range(200):
                    middle = (low + high) / 2
                    too_large = np.maximum(np.abs(row) - middle, 0).sum() > epsilon
                    low, high = (middle, high) if too_large else (low, middle)
                row[:] = np.sign(row) * np.maximum(np.abs(row) - high, 0)
    return np.clip(centre + delta.reshape(x.shape), 0.0, 1.0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_steps_by_definition(linear, few, norm, targeted):
    """FGSM, PGD and MIM without random start on softmax regression, in float64, against numpy."""
    images, labels = few[0].double(), (few[1] + 3) % 10 if targeted else few[1]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).double().requires_grad_(False)
    model.load_state_dict(linear.state_dict())
    clean, y, epsilon = images.numpy(), labels.numpy(), RADII[norm]
    sign = -1.0 if targeted else 1.0
    step = epsilon / 3
    common = {"epsilon": epsilon, "norm": norm, "targeted": targeted, "judge_chains": 1}

    expected = numpy_into_ball(
        clean + epsilon * numpy_direction(numpy_gradient(linear, clean, y, sign), norm), clean, epsilon, norm
    )
    found = FGSM(**common)(model, images, labels, **SMALL).adversarial
    np.testing.assert_allclose(found, expected, atol=1e-9)

    x = clean
    for _ in range(5):
        x = numpy_into_ball(x + step * numpy_direction(numpy_gradient(linear, x, y, sign), norm), clean, epsilon, norm)
    attack = PGD(steps=5, step_size=step, random_start=False, **common)
    np.testing.assert_allclose(attack(model, images, labels, **SMALL).adversarial, x, atol=1e-9)

    x, momentum = clean, np.zeros_like(clean)
    for _ in range(5):
        g = numpy_gradient(linear, x, y, sign)
        momentum = 0.7 * momentum + g / np.abs(g).sum(axis=(1, 2, 3), keepdims=True)
        x = numpy_into_ball(x + step * numpy_direction(momentum, norm), clean, epsilon, norm)
    attack = MIM(steps=5, step_size=step, decay=0.7, **common)
    np.testing.assert_allclose(attack(model, images, labels, **SMALL).adversarial, x, atol=1e-9)


def test_foolbox_takes_the_same_steps(linear, few):
    foolbox = pytest.importorskip("foolbox")
    images, labels = few
    target = foolbox.PyTorchModel(linear, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.03, steps=6, random_start=False)
    _, expected, fooled = attack(target, images, labels, epsilons=0.1)
    result = PGD(epsilon=0.1, steps=6, step_size=0.03, random_start=False)(linear, images, labels, **SMALL)
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-6)
    assert torch.equal(result.success, fooled)


def test_a_blind_attack_is_one_on_the_bare_classifier(defended, linear, few):
    settings = {"epsilon": 0.2, "steps": 3, "seed": 1}
    blind = PGD(gradient="blind", **settings)(defended, *few, **SMALL)
    bare = PGD(**settings)(linear, *few, **SMALL)
    assert torch.equal(blind.adversarial, bare.adversarial)
    assert torch.equal(blind.losses, bare.losses)


def test_random_fgsm_by_definition(linear, few):
    images, labels = few
    attack = RandomFGSM(epsilon=0.2, alpha=0.05, seed=4, judge_chains=1)
    found = attack(linear, images, labels, **SMALL).adversarial
    ids = torch.arange(len(images))
    normal = geometry.normals(derive_seed(4, 0, 0), ids, 0, images)
    start = (images + 0.05 * normal.sign()).clamp(0, 1)
    gradient = numpy_gradient(linear, start.double().numpy(), labels.numpy())
    expected = np.clip(start.numpy() + 0.15 * np.sign(gradient), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    inside = (images > 0.21) & (images < 0.79)
    moved = (found - images).abs()[inside]
    # alpha + (epsilon - alpha) or (epsilon - alpha) - alpha: nothing else is possible away from the bounds.
    assert bool(
        (torch.isclose(moved, torch.tensor(0.2), atol=1e-5) | torch.isclose(moved, torch.tensor(0.1), atol=1e-5)).all()
    )


def all_attacks(norm):
    common = {"epsilon": RADII[norm], "norm": norm, "judge_chains": 3}
    attacks = [
        FGSM(eot=2, **common),
        PGD(steps=3, eot=2, restarts=2, **common),
        PGD(steps=3, gradient="bpda", **common),
        PGD(steps=3, gradient="blind", noise="fixed", **common),
        MIM(steps=3, **common),
        ReconstructionPGD(steps=3, **common),
        CounterAttackA(steps=3, **common),
        CounterAttackB(steps=3, **common),
    ]
    return attacks if norm == "l1" else [*attacks, RandomFGSM(**common)]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_attack_stays_inside_and_leaves_everything_alone(defended, few, norm):
    images, labels = few[0][:6], few[1][:6]
    before, state = images.clone(), torch.random.get_rng_state()
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    for attack in all_attacks(norm):
        result = attack(defended, images, labels, **SMALL)
        delta = (result.adversarial.double() - images.double()).flatten(1).numpy()
        assert float(np.linalg.norm(delta, ord=order, axis=1).max()) <= RADII[norm] * (1 + 1e-5) + 1e-6, attack.name
        assert float(np.linalg.norm(delta, ord=order, axis=1).max()) > 0.3 * RADII[norm], attack.name
        assert float(result.adversarial.min()) >= 0.0
        assert float(result.adversarial.max()) <= 1.0
        assert result.losses.shape == (attack.n_restarts, attack.n_steps, 6)
        assert bool(torch.isfinite(result.losses).all())
        assert result.adversarial.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert defended.gradient == "unrolled"


def test_seeds_decide_everything(defended, few):
    images, labels = few
    attack = PGD(epsilon=0.2, steps=3, eot=2, seed=7)
    first = attack(defended, images, labels, **SMALL)
    torch.manual_seed(123)
    again = attack(defended, images, labels, **SMALL)
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(first.success_rate, again.success_rate)
    other = PGD(epsilon=0.2, steps=3, eot=2, seed=8)(defended, images, labels, **SMALL)
    assert not torch.equal(first.adversarial, other.adversarial)


def test_batches_change_rounding_only(defended, few):
    images, labels = few
    attack = PGD(epsilon=2.0, norm="l2", steps=3, eot=3, restarts=2, seed=1)
    whole = attack(defended, images, labels, **SMALL)
    parts = attack(defended, images, labels, batch_size=5, **SMALL)
    torch.testing.assert_close(parts.adversarial, whole.adversarial, rtol=0, atol=1e-5)
    assert torch.equal(parts.success, whole.success)
    alone = attack(defended, images[9:10], labels[9:10], sample_ids=[9], **SMALL)
    torch.testing.assert_close(alone.adversarial, whole.adversarial[9:10], rtol=0, atol=1e-5)
    # A sign turns the rounding of a gradient near zero into a whole step: that may be a few pixels, not more.
    attack = PGD(epsilon=0.2, steps=3, eot=2, seed=1)
    whole = attack(defended, images, labels, **SMALL).adversarial
    parts = attack(defended, images, labels, batch_size=7, **SMALL).adversarial
    assert float(((whole - parts).abs() > 1e-5).double().mean()) < 0.005


def test_noise_is_fresh_at_each_step_unless_fixed(defended, few):
    images, labels = few
    seeds = []
    handle = defended.purifier.register_forward_pre_hook(
        lambda module, args, kwargs: seeds.append(kwargs["seed"]), with_kwargs=True
    )
    PGD(epsilon=0.2, steps=4, restarts=2)(defended, images, labels, **SMALL)
    # 2 x 4 steps, 2 comparisons of restarts, 1 verdict: all with noise of their own.
    assert len(set(seeds)) == len(seeds) == 11
    seeds.clear()
    PGD(epsilon=0.2, steps=4, restarts=2, noise="fixed")(defended, images, labels, **SMALL)
    handle.remove()
    assert len(seeds) == 11
    assert len(set(seeds)) == 5


def test_a_seed_of_the_model_is_not_used(purifier, linear, few):
    images, labels = few
    attack = PGD(epsilon=0.2, steps=2)
    free = attack(DefendedClassifier(purifier, linear), images, labels, **SMALL)
    fixed = attack(DefendedClassifier(purifier, linear, seed=5), images, labels, **SMALL)
    assert torch.equal(free.adversarial, fixed.adversarial)


def test_counts_and_history(defended, few):
    images, labels = few[0][:4], few[1][:4]
    attack = PGD(epsilon=0.2, steps=3, restarts=2, eot=4, spread=True, judge_chains=5)
    result = attack(defended, images, labels, **SMALL)
    assert result.gradients.tolist() == [2 * 3 * 4] * 4
    assert result.queries.tolist() == [2 * 3 * 4 + 2 * 5 + 5] * 4
    assert result.spread.shape == (2, 3, 4)
    assert bool((result.spread.abs() <= 1 + 1e-9).all())
    assert result.judged == "majority of 5 queries with fresh noise"
    assert result.robust_accuracy == 1 - float(result.success.double().mean())
    assert result.seconds > 0
    assert float(result.losses[:, -1].mean()) > float(result.losses[:, 0].mean())


def test_early_stop_spares_images_and_changes_no_other(defended, few):
    images, labels = few
    settings = {"epsilon": 1.6, "norm": "l2", "steps": 8, "step_size": 0.5, "seed": 2}
    full = PGD(**settings)(defended, images, labels, **SMALL)
    early = PGD(early_stop=True, **settings)(defended, images, labels, **SMALL)
    stopped = torch.isnan(early.losses[0]).any(0)
    assert int(stopped.sum()) >= 3
    assert int(early.gradients.sum()) < int(full.gradients.sum())
    seen = ~torch.isnan(early.losses)
    torch.testing.assert_close(early.losses[seen], full.losses[seen], rtol=1e-4, atol=1e-5)
    # Stopped images were confirmed by noise of their own; the verdict's noise may differ on a few.
    assert float(early.success[stopped].double().mean()) > 0.8
    for image in stopped.nonzero()[:, 0].tolist():
        history = torch.isnan(early.losses[0, :, image])
        assert bool((history[1:] >= history[:-1]).all())
        assert int(early.gradients[image]) == int((~history).sum())


def test_restarts_keep_the_iterate_that_fools_most(defended, few):
    images, labels = few
    settings = {"epsilon": 0.12, "steps": 2, "seed": 5, "judge_chains": 15}
    one = PGD(**settings)(defended, images, labels, **SMALL)
    four = PGD(restarts=4, **settings)(defended, images, labels, **SMALL)
    assert float(four.success_rate.mean()) >= float(one.success_rate.mean())
    kept = (four.adversarial == one.adversarial).flatten(1).all(1)
    assert 0 < int(kept.sum()) < len(images)


def test_targeted_reaches_its_class(linear, few):
    images, labels = few
    wanted = (labels + 1) % 10
    result = PGD(epsilon=0.3, steps=10, targeted=True, step_size=0.03)(linear, images, wanted, **SMALL)
    assert torch.equal(result.success, linear(result.adversarial).argmax(1) == wanted)
    assert float(result.success.double().mean()) > 0.8
    with pytest.raises(ValueError, match="targeted"):
        _ = result.robust_accuracy


def test_reconstruction_pgd_changes_the_purified_image_less(defended, few):
    images, labels = few
    settings = {"epsilon": 0.2, "steps": 4, "seed": 3, "eot": 2}

    def change(attacked):
        with torch.no_grad():
            return float((defended.purifier(attacked, seed=99) - attacked).square().flatten(1).sum(1).mean())

    plain = ReconstructionPGD(weight=0.0, **settings)(defended, images, labels, **SMALL).adversarial
    assert torch.equal(plain, PGD(**settings)(defended, images, labels, **SMALL).adversarial)
    for gradient in ("unrolled", "bpda"):
        attack = ReconstructionPGD(weight=100.0, gradient=gradient, **settings)
        assert change(attack(defended, images, labels, **SMALL).adversarial) < change(plain) - 0.5


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_counter_attacks_by_definition(purifier, linear, few, value_range):
    """003 eq. 14 and 15 (with the minus of its text), the autoencoder called on [0, 1]."""
    low, high = value_range
    scaled = Purifier(purifier.autoencoder, purifier.chain, value_range=value_range)
    defended = DefendedClassifier(scaled, linear)
    images, labels = few[0] * (high - low) + low, few[1]

    def reconstruction(x):
        return purifier.autoencoder((x - low) / (high - low)) * (high - low) + low

    objectives = {
        CounterAttackA: lambda x: F.cross_entropy(linear(reconstruction(x)), labels, reduction="sum"),
        CounterAttackB: lambda x: (
            F.cross_entropy(linear(x), labels, reduction="sum") - 0.3 * ((x - reconstruction(x)) ** 2).sum()
        ),
    }
    for kind, objective in objectives.items():
        x = images
        for _ in range(3):
            leaf = x.clone().requires_grad_(True)
            gradient = torch.autograd.grad(objective(leaf), leaf)[0]
            x = (images + (x + 0.05 * gradient.sign() - images).clamp(-0.1, 0.1)).clamp(low, high)
        options = {"beta": 0.3} if kind is CounterAttackB else {}
        found = kind(epsilon=0.1, steps=3, step_size=0.05, **options)(defended, images, labels, **SMALL).adversarial
        assert float(((found - x).abs() > 1e-5).double().mean()) < 0.002


def test_an_empty_batch(defended, few):
    result = PGD(epsilon=0.1, steps=2)(defended, few[0][:0], few[1][:0], **SMALL)
    assert result.adversarial.shape == (0, 1, 28, 28)
    with pytest.raises(ValueError, match="at least one image"):
        _ = result.robust_accuracy


def test_training_mode_is_suspended_and_given_back(purifier, linear, few):
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), linear)
    defended = DefendedClassifier(purifier, model).train()
    attack = PGD(epsilon=0.1, steps=2)
    first, second = (attack(defended, *few, **SMALL).adversarial for _ in range(2))
    assert torch.equal(first, second)
    assert defended.training
    assert model[0].training
    assert not defended.purifier.autoencoder.training or purifier.training


def test_wrong_arguments(defended, linear, few):
    images, labels = few
    cases = [
        (lambda: PGD(epsilon=-0.1), ValueError, "epsilon"),
        (lambda: PGD(epsilon=float("nan")), ValueError, "epsilon"),
        (lambda: PGD(epsilon="0.3"), TypeError, "epsilon"),
        (lambda: PGD(epsilon=0.3, norm="l0"), ValueError, "norm"),
        (lambda: PGD(epsilon=0.3, gradient="exact"), ValueError, "gradient"),
        (lambda: PGD(epsilon=0.3, steps=0), ValueError, "steps"),
        (lambda: PGD(epsilon=0.3, restarts=1.5), TypeError, "restarts"),
        (lambda: PGD(epsilon=0.3, eot=0), ValueError, "eot"),
        (lambda: PGD(epsilon=0.3, gradient="blind", eot=2), ValueError, "eot: expected 1"),
        (lambda: PGD(epsilon=0.3, spread=True), ValueError, "eot: expected at least 2"),
        (lambda: PGD(epsilon=0.3, judge="vote"), ValueError, "judge"),
        (lambda: PGD(epsilon=0.3, noise="old"), ValueError, "noise"),
        (lambda: PGD(epsilon=0.3, seed=-1), ValueError, "seed"),
        (lambda: PGD(epsilon=0.3, random_start=1), TypeError, "random_start"),
        (lambda: RandomFGSM(epsilon=0.1, alpha=0.2), ValueError, "alpha"),
        (lambda: RandomFGSM(epsilon=0.1, norm="l1"), ValueError, "norm"),
        (lambda: MIM(epsilon=0.1, decay=-1), ValueError, "decay"),
        (lambda: ReconstructionPGD(epsilon=0.1, gradient="blind"), ValueError, "gradient"),
        (lambda: CounterAttackA(epsilon=0.1, eot=2), ValueError, "eot"),
        (lambda: FGSM(epsilon=0.1)(3, images, labels), TypeError, "model"),
        (lambda: FGSM(epsilon=0.1)(defended, images + 0.5, labels), ValueError, "images: expected values"),
        (lambda: FGSM(epsilon=0.1)(defended, images * torch.nan, labels), ValueError, "images: expected values"),
        (lambda: FGSM(epsilon=0.1)(defended, images, labels, batch_size=0), ValueError, "batch_size"),
        (lambda: FGSM(epsilon=0.1)(defended, images, labels, value_range=(-1, 1)), ValueError, "value_range"),
        (lambda: FGSM(epsilon=0.1)(linear, images, labels, value_range=(1, 0)), ValueError, "value_range"),
        (lambda: FGSM(epsilon=0.1, gradient="bpda")(linear, images, labels), ValueError, "DefendedClassifier"),
        (lambda: ReconstructionPGD(epsilon=0.1)(linear, images, labels), TypeError, "DefendedClassifier"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.slow
def test_the_exact_gradient_is_stronger_than_the_blind_one(digits):
    """The shipped defence on 32 digits. Weak settings; that they fool it is the point."""
    defended = DefendedClassifier(Purifier.from_pretrained("malade-mnist"), load_classifier("mnist-c"))
    images, labels = digits[0][::31][:32], digits[1][::31][:32]
    accuracies = {}
    for gradient in ("unrolled", "blind"):
        attack = PGD(epsilon=0.3, steps=10, step_size=0.05, gradient=gradient)
        accuracies[gradient] = attack(defended, images, labels, **SMALL).robust_accuracy
    assert accuracies["unrolled"] < accuracies["blind"] - 0.2
