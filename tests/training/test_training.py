"""Training: objectives by hand, determinism, resume after an interruption, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastmalade import Autoencoder
from fastmalade.models import build_classifier
from fastmalade.training import (
    CheckpointError,
    autoencoder_loss,
    train_autoencoder,
    train_classifier,
)
from fastmalade.training import loop as training_loop

QUICK = {"epochs": 3, "batch_size": 50, "progress": False}


@pytest.fixture
def few(digits):
    return digits[0][:120], digits[1][:120]


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_supervised_objective_by_hand(rng):
    clean = torch.from_numpy(rng.random((3, 1, 4, 4)))
    reconstruction = torch.from_numpy(rng.random((3, 1, 4, 4)))
    logits = torch.from_numpy(rng.normal(size=(3, 5)))
    labels = torch.tensor([4, 0, 2])
    got = autoencoder_loss(reconstruction, clean, sigma2=0.3, logits=logits, labels=labels)
    for i in range(3):
        squares = sum(
            (float(a) - float(b)) ** 2 for a, b in zip(reconstruction[i].flatten(), clean[i].flatten(), strict=True)
        )
        entropy = math.log(sum(math.exp(float(v)) for v in logits[i])) - float(logits[i, labels[i]])
        assert float(got[i]) == pytest.approx(squares + 2 * 0.3 * entropy, rel=1e-12)
    with pytest.raises(ValueError, match="labels"):
        autoencoder_loss(reconstruction, clean, sigma2=0.3, logits=logits)


def test_the_weight_of_the_supervised_term(rng, few):
    clean, logits = torch.from_numpy(rng.random((3, 1, 4, 4))), torch.from_numpy(rng.normal(size=(3, 5)))
    options = {"sigma2": 0.3, "logits": logits, "labels": torch.tensor([4, 0, 2])}
    terms = [autoencoder_loss(clean * 0.5, clean, **options, supervision=weight) for weight in (0.0, 1.0, 16.0)]
    torch.testing.assert_close(terms[2] - terms[0], 16.0 * (terms[1] - terms[0]))
    # With the number of pixels as weight: a per-pixel mean and 2 sigma^2 CE, up to a common factor.
    mean = (clean * 0.5 - clean).square().flatten(1).mean(1)
    entropy = torch.nn.functional.cross_entropy(logits, options["labels"], reduction="none")
    torch.testing.assert_close(terms[2] / 16.0, mean + 2 * 0.3 * entropy)
    classifier = build_classifier("D")
    plain, _ = train_autoencoder(*few, **QUICK, class_balanced=True)
    balanced, report = train_autoencoder(
        *few, **QUICK, class_balanced=True, classifier=classifier, supervision=0.0, validation=few
    )
    assert torch.equal(parameters(plain), parameters(balanced))  # MALA in everything but the scores
    assert "validation_accuracy" in report.final
    stronger, _ = train_autoencoder(*few, **QUICK, class_balanced=True, classifier=classifier, supervision=784.0)
    assert not torch.equal(parameters(plain), parameters(stronger))
    with pytest.raises(ValueError, match="supervision: expected a number of at least 0, got -1"):
        train_autoencoder(*few, **QUICK, supervision=-1)


@pytest.mark.slow
def test_dae_learns_to_denoise(digits):
    images, labels = digits[0][:600], digits[1][:600]
    held_out = digits[0][800:], digits[1][800:]
    model, report = train_autoencoder(
        images, labels, validation=held_out, sigma2=0.07, epochs=6, batch_size=20, progress=False
    )
    errors = [row["validation_error"] for row in report.history]
    blank = float(held_out[0].square().flatten(1).sum(1).mean())
    assert errors[-1] < errors[0]
    assert errors[-1] < 0.3 * blank  # a constant image cannot do much better than a blank one
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_training_repeats_for_a_seed_and_leaves_the_global_generator_alone(few):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = train_autoencoder(*few, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, _ = train_autoencoder(*few, **QUICK)
    other, _ = train_autoencoder(*few, **QUICK, seed=1)
    assert torch.equal(parameters(first), parameters(second))
    assert not torch.equal(parameters(first), parameters(other))
    name = "D"
    a, _ = train_classifier(name, *few, **QUICK, num_classes=10)
    b, _ = train_classifier(name, *few, **QUICK, num_classes=10)
    assert torch.equal(parameters(a), parameters(b))


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_interrupted_and_resumed_equals_uninterrupted(few, tmp_path, monkeypatch, kind):
    def train(**more):
        if kind == "autoencoder":
            return train_autoencoder(*few, **QUICK, **more)
        return train_classifier("D", *few, **QUICK, num_classes=10, **more)

    whole, _ = train()
    epochs_run = []
    original = training_loop._one_epoch

    def interrupted(model, optimizer, settings, epoch, *rest):
        if epoch == 2 and len(epochs_run) == 2:
            raise KeyboardInterrupt
        epochs_run.append(epoch)
        return original(model, optimizer, settings, epoch, *rest)

    monkeypatch.setattr(training_loop, "_one_epoch", interrupted)
    checkpoint = tmp_path / "deep" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=checkpoint)
    epochs_run.append("resumed")
    resumed, report = train(checkpoint=checkpoint)
    assert epochs_run == [0, 1, "resumed", 2]
    assert len(report.history) == 3
    assert torch.equal(parameters(whole), parameters(resumed))
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["run.pt", "run.pt.log"]
    log = checkpoint.with_name("run.pt.log").read_text().splitlines()
    assert [line.split("epoch ")[1].split(":")[0] for line in log] == ["1/3", "2/3", "3/3"]


def test_a_checkpoint_of_other_settings_or_another_file_is_refused(few, tmp_path):
    checkpoint = tmp_path / "run.pt"
    train_autoencoder(*few, **QUICK, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"sigma2: expected 0\.5, got 0\.15"):
        train_autoencoder(*few, **QUICK, checkpoint=checkpoint, sigma2=0.5)
    with pytest.raises(CheckpointError, match="n_images: expected 60, got 120"):
        train_autoencoder(few[0][:60], few[1][:60], **QUICK, checkpoint=checkpoint)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="expected a training checkpoint"):
        train_autoencoder(*few, **QUICK, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == b"not a checkpoint"


def test_supervision_uses_the_classifier_frozen_and_gives_it_back_unchanged(few):
    classifier = build_classifier("D").train()
    classifier.head[1].eval()
    modes = [module.training for module in classifier.modules()]
    before = parameters(classifier)
    plain, _ = train_autoencoder(*few, **QUICK)
    supervised, report = train_autoencoder(*few, **QUICK, classifier=classifier, validation=few)
    assert torch.equal(parameters(classifier), before)
    assert [module.training for module in classifier.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())
    assert not torch.equal(parameters(plain), parameters(supervised))
    assert 0 <= report.final["validation_accuracy"] <= 1
    assert report.settings["supervised"] is True


def test_supervision_follows_the_labels():
    """With a classifier that reads one pixel, the sDAE makes that pixel brighter for label 1 than the DAE does."""

    class Pixel(nn.Module):
        def forward(self, x):
            centre = 40 * (x[:, 0, 4, 4] - 0.5)
            return torch.stack((-centre, centre), 1)

    images = torch.full((64, 1, 8, 8), 0.5)
    labels = torch.ones(64, dtype=torch.int64)
    settings = {"epochs": 10, "batch_size": 16, "sigma2": 0.5, "progress": False}
    plain, _ = train_autoencoder(images, labels, **settings)
    supervised, _ = train_autoencoder(images, labels, classifier=Pixel(), **settings)
    with torch.no_grad():
        assert supervised(images)[:, 0, 4, 4].mean() > plain(images)[:, 0, 4, 4].mean() + 0.02


def test_class_balance_gives_rare_classes_their_weight():
    """Nine dark images and one bright one: balanced training reconstructs the bright one better."""
    images = torch.cat((torch.zeros(90, 1, 8, 8), torch.full((10, 1, 8, 8), 0.8)))
    labels = torch.cat((torch.zeros(90, dtype=torch.int64), torch.ones(10, dtype=torch.int64)))
    settings = {"epochs": 3, "batch_size": 20, "sigma2": 1.0, "progress": False}
    rare = images[90:]
    errors = []
    for balanced in (False, True):
        model, _ = train_autoencoder(images, labels, class_balanced=balanced, **settings)
        noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            errors.append(float((model(rare + noise) - rare).square().sum()))
    assert errors[1] < errors[0]


def test_warm_start_begins_where_the_other_ended(few):
    start, _ = train_autoencoder(*few, **QUICK)
    settings = {**QUICK, "epochs": 1, "learning_rate": 1e-12}
    continued, _ = train_autoencoder(*few, **settings, initial=start)
    assert torch.allclose(parameters(continued), parameters(start), atol=1e-9)
    with pytest.raises(ValueError, match="initial: expected"):
        train_autoencoder(*few, **QUICK, initial=Autoencoder(hidden_channels=(4, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected a positive integer"),
        ({"batch_size": 2.5}, "batch_size: expected a positive integer"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number"),
        ({"sigma2": 0.0}, "sigma2: expected a positive number"),
        ({"class_balanced": True, "labels": None}, "expected labels"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels of shape \(120,\)"),
        ({"images": torch.full((120, 1, 28, 28), 1.5)}, r"values in \[0, 1\], got \[1.5, 1.5\]"),
        ({"images": torch.full((120, 1, 28, 28), float("nan"))}, "got .nan"),
        ({"images": torch.zeros(120, 28, 28)}, "expected images"),
        ({"images": torch.zeros(120, 1, 27, 28)}, "multiples of 4"),
    ],
)
def test_unfit_arguments_are_named(few, change, message):
    arguments = {"images": few[0], "labels": few[1], **QUICK, **change}
    with pytest.raises(ValueError, match=message):
        train_autoencoder(arguments.pop("images"), arguments.pop("labels"), **arguments)


def test_diverging_training_stops_with_an_error(few):
    class Nan(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    with pytest.raises(FloatingPointError, match="epoch 1: expected a finite training loss"):
        train_autoencoder(*few, **QUICK, classifier=Nan())


def test_classifier_learns_and_shifts(few):
    model, report = train_classifier(
        "D", *few, epochs=25, batch_size=20, max_shift=1, progress=False, validation=few, num_classes=10
    )
    assert report.final["validation_accuracy"] > 0.8
    assert model(few[0]).shape == (120, 10)
