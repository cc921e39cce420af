"""Substitute-model and combined attacks: each step by hand, and the whole on a defence whose weakness is known."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from small_defenses import NAMES, small_defense
from torch import nn

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Defense, Purifier
from fastmalade.attacks import FGSM, PGD, substitute
from fastmalade.attacks.substitute import (
    CombinedSubstitute,
    augmented,
    substitute_purifier,
    train_substitute_classifier,
    train_substitute_purifier,
)
from fastmalade.attacks.transfer import TransferResult, transfer_attack
from fastmalade.seeds import derive_seed
from fastmalade.training import CheckpointError


class _Shift(Defense):
    """Adds noise of a known size; ``seen`` are the (sample id, image) pairs asked about."""

    def __init__(self, scale: float = 0.0, **options) -> None:
        super().__init__(**options)
        self.scale, self.seen = scale, []

    def _purified(self, x, seed, sample_ids):
        self.seen += zip(sample_ids.tolist(), x.detach().clone(), strict=True)
        return (x + self.scale * torch.sin(sample_ids.to(x) + seed % 7)[:, None, None, None]).clamp(0, 1)


def _linear(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def _bright(sharpness: float = 20.0) -> nn.Module:
    """Class 1 where the mean of a 4x4 image is above 1/2."""
    model = _linear(0)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16) * sharpness / 16)
        model[1].bias.copy_(torch.tensor([0.5, -0.5]) * sharpness)
    return model.requires_grad_(False).eval()


@pytest.fixture
def squares():
    """40 grey images (40, 1, 4, 4) with some noise, and whether they are bright."""
    generator = torch.Generator().manual_seed(0)
    level = torch.cat([torch.linspace(0.28, 0.42, 20), torch.linspace(0.58, 0.72, 20)])
    x = level[:, None, None, None] + 0.05 * (torch.rand(40, 1, 4, 4, generator=generator) - 0.5)
    order = torch.randperm(40, generator=generator)
    return x[order], (level > 0.5).long()[order]


SETTINGS = {"rounds": 3, "epochs": 10, "batch_size": 8, "learning_rate": 0.05, "query_batch": 16, "progress": False}


def test_augmentation_by_hand():
    model = _linear(0)
    weight = torch.tensor([[1.0, -2.0, 0.0] + [0.0] * 13, [3.0, -5.0, 0.0] + [0.0] * 13])
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.zero_()
    x = torch.full((2, 1, 4, 4), 0.5)
    x[1, 0, 0, 0] = 0.95
    made = augmented(model, x, torch.tensor([0, 1]), 0.1)
    # dp_0/dx has the sign of w_0 - w_1 = (-2, 3, 0, ...), dp_1/dx the other; the second image meets the upper bound.
    expected = x.clone()
    expected[0, 0, 0, :2] = torch.tensor([0.4, 0.6])
    expected[1, 0, 0, :2] = torch.tensor([1.0, 0.4])
    torch.testing.assert_close(made, expected)
    with torch.no_grad():
        model[1].weight.mul_(1e4)
    # One p_y is 0 in float32 here and the other 1, and their gradients would be 0.
    torch.testing.assert_close(augmented(model, x, torch.tensor([0, 1]), 0.1), expected)


def test_queries_are_those_of_the_algorithm(squares):
    x, _ = squares
    defense = _Shift()
    target = DefendedClassifier(defense, _bright())
    substitute = _linear(1)
    known = train_substitute_classifier(substitute, target, x, **SETTINGS)
    # 40 images, doubled twice, each asked once, with a sample id of its own.
    assert [i for i, _ in defense.seen] == list(range(160))
    assert torch.equal(torch.stack([image for _, image in defense.seen]), known.images)
    assert torch.equal(known.images[:40], x)
    assert torch.equal(known.labels, target.classifier(known.images).argmax(1))
    # What is added lies one step from what was there, in every pixel.
    gaps = (known.images[80:] - known.images[:80]).abs()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.1), rtol=0, atol=1e-6)
    assert len(known.agreement) == 3
    final = float((substitute(known.images).argmax(1) == known.labels).float().mean())
    assert known.agreement[-1] == pytest.approx(final)
    assert final > 0.9
    assert not substitute.training


class _Cut(KeyboardInterrupt):
    """An interruption that only these tests make."""


def _cut_after(calls: int, function):
    """``function`` until it has been called so often, then an interruption."""

    def cut(*arguments, **options):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise _Cut
        return function(*arguments, **options)

    return cut


def _cut_at_training(path, unlink):
    """``unlink``, with an interruption before the epochs beside ``path`` are gone."""

    def cut(self, **options):
        if self.name == path.name + ".training":
            raise _Cut
        unlink(self, **options)

    return cut


@pytest.mark.parametrize("inner", [None, FGSM(epsilon=0.2)], ids=["queries", "inner attack"])
def test_an_interrupted_run_asks_nothing_twice(squares, tmp_path, monkeypatch, inner):
    x, _ = squares
    settings = SETTINGS | {"epochs": 3, "inner_attack": inner}
    whole = _linear(1)
    expected = train_substitute_classifier(whole, DefendedClassifier(_Shift(0.4), _bright()), x, **settings)
    path = tmp_path / "runs" / "substitute.safetensors"
    asked, cuts = [], 0
    while True:
        defense, model = _Shift(0.4), _linear(1)
        target = DefendedClassifier(defense, _bright())
        with monkeypatch.context() as patched:
            # Cut in turn among the queries, in the epochs of a training (a loss is computed for each batch), and where
            # the epochs of a round that is over are forgotten.
            if cuts % 3 == 2:
                patched.setattr(type(path), "unlink", _cut_at_training(path, type(path).unlink))
            elif cuts % 3 == 0:
                patched.setattr(defense, "_purified", _cut_after(2, defense._purified))
            else:
                patched.setattr(substitute.F, "cross_entropy", _cut_after(9 + 4 * cuts, substitute.F.cross_entropy))
            try:
                got = train_substitute_classifier(model, target, x, checkpoint=path, **settings)
                break
            except _Cut:
                cuts += 1
            finally:
                asked += defense.seen
    assert cuts >= 4
    assert [i for i, _ in asked] == list(range(len(expected.images)))
    assert torch.equal(got.images, expected.images)
    assert torch.equal(got.labels, expected.labels)
    assert got.agreement == expected.agreement
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert not model.training
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    # A run that is over asks nothing and trains nothing.
    again, before = _linear(2), len(defense.seen)
    train_substitute_classifier(again, target, x, checkpoint=path, **settings)
    assert len(defense.seen) == before
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_of_another_run_is_refused(squares, tmp_path):
    x, _ = squares
    target, path = DefendedClassifier(_Shift(), _bright()), tmp_path / "run.safetensors"
    settings = SETTINGS | {"rounds": 1, "epochs": 1, "checkpoint": path}
    train_substitute_classifier(_linear(1), target, x, **settings)
    content = path.read_bytes()
    for message, arguments, changed in [
        ("images: expected", (target, x.flip(0)), {}),
        ("model: expected", (DefendedClassifier(_Shift(), _bright(10.0)), x), {}),
        ("settings: expected", (target, x), {"step": 0.2}),
        ("settings: expected", (target, x), {"inner_attack": FGSM(epsilon=0.1)}),
    ]:
        with pytest.raises(CheckpointError, match=f"made with other settings .{message}"):
            train_substitute_classifier(_linear(1), *arguments, **(settings | changed))
    assert path.read_bytes() == content
    path.write_bytes(b"no record")
    with pytest.raises(CheckpointError, match="expected a record of queries, got"):
        train_substitute_classifier(_linear(1), target, x, **settings)
    assert path.read_bytes() == b"no record"
    save_file({"images": x.clone()}, path)
    with pytest.raises(CheckpointError, match="expected a record of queries of format 1"):
        train_substitute_classifier(_linear(1), target, x, **settings)


def test_purified_images_are_kept(squares, tmp_path):
    x, _ = squares
    path = tmp_path / "run.safetensors"
    settings = {"epochs": 2, "batch_size": 8, "query_batch": 16, "checkpoint": path, "progress": False}
    first, second = _Shift(0.4), _Shift(0.4)
    whole, model = substitute_purifier(first, width=2, channels=1), substitute_purifier(first, width=2, channels=1)
    train_substitute_purifier(whole, first, x, **(settings | {"checkpoint": None}))
    cut = _cut_after(2, second._purified)
    second._purified, purified = cut, second._purified
    with pytest.raises(_Cut):
        train_substitute_purifier(model, second, x, **settings)
    second._purified = purified
    train_substitute_purifier(model, second, x, **settings)
    assert [i for i, _ in second.seen] == list(range(40))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_inner_adversarial_images_are_asked_about(squares):
    x, _ = squares
    target = DefendedClassifier(_Shift(), _bright())
    attack = FGSM(epsilon=0.2)
    known = train_substitute_classifier(
        _linear(1), target, x, inner_attack=attack, **{**SETTINGS, "rounds": 1, "epochs": 1}
    )
    assert len(known.images) == 80
    made = attack(target.classifier, x, target.classifier(x).argmax(1), progress=False).adversarial
    torch.testing.assert_close(known.images[40:], made)


def test_repeatable_by_seed_whatever_the_query_batch(squares):
    x, _ = squares
    target = DefendedClassifier(_Shift(0.4), _bright())
    runs = []
    for options in ({}, {"query_batch": 7}, {"seed": 1}):
        model = _linear(1)
        torch.manual_seed(len(runs))
        before = torch.random.get_rng_state()
        runs.append((train_substitute_classifier(model, target, x, **{**SETTINGS, **options}), model[1].weight))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(runs[0][0].labels, runs[1][0].labels)
    torch.testing.assert_close(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_the_substitute_attack_transfers_to_what_was_imitated(squares):
    x, y = squares
    target = DefendedClassifier(_Shift(), _bright())
    substitute = _linear(1)
    train_substitute_classifier(substitute, target, x, **SETTINGS)
    attack = PGD(epsilon=0.35, steps=10, random_start=False)
    found = transfer_attack(attack, substitute, target, x, y, batch_size=16, progress=False)
    assert int(found.valid.sum()) >= 36
    assert found.substitute_rate > 0.9
    assert found.rate > 0.8
    assert torch.equal(found.fooled, target(found.adversarial).argmax(1) != y)
    again = transfer_attack(attack, substitute, target, x, y, batch_size=40, progress=False)
    assert torch.equal(again.fooled, found.fooled)
    # What is no attack on the substitute is none on the target.
    still = transfer_attack(FGSM(epsilon=0.0), substitute, target, x, y, progress=False)
    assert still.rate == still.substitute_rate == 0.0


def test_rates_are_over_valid_images():
    yes, no = True, False
    result = TransferResult(
        torch.zeros(4, 1, 1, 1),
        valid=torch.tensor([yes, yes, yes, no]),
        fooled_substitute=torch.tensor([yes, yes, no, yes]),
        fooled=torch.tensor([yes, no, no, yes]),
    )
    assert result.rate == pytest.approx(1 / 3)
    assert result.substitute_rate == pytest.approx(2 / 3)
    assert math.isnan(TransferResult(*[torch.zeros(0, dtype=torch.bool)] * 4).rate)


def test_a_random_target_is_judged_by_its_majority(squares):
    x, y = squares
    target = DefendedClassifier(_Shift(0.1), _bright())
    found = transfer_attack(FGSM(epsilon=0.0, judge_chains=5), target.classifier, target, x, y, progress=False)
    # Noise of a tenth moves no image across the border.
    assert bool(found.valid.all())
    assert not bool(found.fooled.any())
    assert len(target.purifier.seen) == 2 * 5 * 40


@pytest.fixture
def images(digits):
    """Five digits with some grey added, so that no pixel sits on the edge of the range."""
    return 0.8 * digits[0][:5] + 0.1


def test_a_projection_is_imitated_by_an_encoder_before_its_own_generator(images, tmp_path):
    defense = small_defense("inc", (-1.0, 1.0))
    x = 2 * images - 1
    model = substitute_purifier(defense, width=2, seed=3)
    encoder, generator = model.network
    assert all(p.requires_grad for p in encoder.parameters())
    assert not any(p.requires_grad for p in generator.parameters())
    torch.testing.assert_close(model(x), generator(encoder(images)) * 2 - 1, rtol=0, atol=1e-5)
    wanted = defense(x, seed=derive_seed(0, 0), sample_ids=range(5))
    before = float((model(x) - wanted).square().mean().detach())
    settings = {"epochs": 30, "batch_size": 5, "learning_rate": 1e-2, "progress": False}
    path = tmp_path / "run.pt"
    report = train_substitute_purifier(model, defense, x, checkpoint=path, query_batch=2, **settings)
    after = float((model(x) - wanted).square().mean().detach())
    assert after < 0.7 * before
    assert report.history[0]["train_loss"] == pytest.approx(before, rel=1e-3)
    resumed = substitute_purifier(defense, width=2, seed=4)
    train_substitute_purifier(resumed, defense, x, checkpoint=path, query_batch=2, **settings)
    for a, b in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="other settings"):
        train_substitute_purifier(resumed, defense, x, checkpoint=path, query_batch=2, **{**settings, "epochs": 3})


@pytest.mark.parametrize("name", NAMES)
def test_the_combined_attack_on_every_defence(name, images, digits, fit_softmax):
    defense = small_defense(name)
    classifier = fit_softmax(*digits)
    model = substitute_purifier(defense, width=2, channels=1)
    train_substitute_purifier(model, defense, images, epochs=1, batch_size=5, progress=False)
    target = DefendedClassifier(defense, classifier, gradient="bpda")
    combined = CombinedSubstitute(model, classifier)
    torch.testing.assert_close(combined(images), classifier(model(images)))
    attack = FGSM(epsilon=0.1, judge_chains=3)
    found = transfer_attack(attack, combined, target, images, digits[1][:5], progress=False)
    assert float((found.adversarial - images).abs().max()) <= 0.1 + 1e-6
    assert not torch.equal(found.adversarial, images)
    again = transfer_attack(attack, combined, target, images, digits[1][:5], progress=False)
    assert torch.equal(again.fooled, found.fooled)


def test_the_channels_of_the_images():
    purifier = Purifier(torch.tanh, ChainConfig(1, 0.1, 0.0))
    with pytest.raises(ValueError, match="channels: expected the C of the images, got None"):
        substitute_purifier(purifier)
    assert substitute_purifier(purifier, width=2, channels=3)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    table8 = Purifier(Autoencoder(3, (2, 2)), ChainConfig(1, 0.1, 0.0))
    assert substitute_purifier(table8, width=2)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="channels: expected 1, got 3"):
        substitute_purifier(Defense.from_pretrained("inc-mnist"), channels=3)


def test_bad_arguments(squares):
    x, y = squares
    target, model = DefendedClassifier(_Shift(), _bright()), _linear(0)
    for error, message, call in [
        (TypeError, "target: expected a DefendedClassifier", lambda: train_substitute_classifier(model, model, x)),
        (ValueError, "substitute: expected a module with", lambda: train_substitute_classifier(_bright(), target, x)),
        (ValueError, "rounds: expected at least 1", lambda: train_substitute_classifier(model, target, x, rounds=0)),
        (TypeError, "step: expected a float", lambda: train_substitute_classifier(model, target, x, step="a")),
        (ValueError, "images: expected values in", lambda: train_substitute_classifier(model, target, x + 1)),
        (ValueError, "images: expected a floating", lambda: train_substitute_classifier(model, target, x[:0])),
        (
            TypeError,
            "inner_attack: expected an attack",
            lambda: train_substitute_classifier(model, target, x, inner_attack="FGSM"),
        ),
        (TypeError, "defense: expected a Defense", lambda: train_substitute_purifier(model, model, x)),
        (ValueError, "images: expected values in", lambda: train_substitute_purifier(model, target.purifier, -x)),
        (TypeError, "attack: expected an attack", lambda: transfer_attack("FGSM", model, target, x, y)),
        (TypeError, "target: expected a Defended", lambda: transfer_attack(FGSM(epsilon=0.1), model, model, x, y)),
        (
            ValueError,
            "expected an untargeted attack",
            lambda: transfer_attack(FGSM(epsilon=0.1, targeted=True), model, target, x, y),
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
