"""The purifier as ART's preprocessor: gradients equal ours, in both ways in which ART differentiates."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmalade import DefendedClassifier

pytest.importorskip("art")

from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent, ProjectedGradientDescentNumpy
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd

from fastmalade.adapters.art import PurifierPreprocessor


def wrapped(linear, *defences, **options):
    return PyTorchClassifier(
        linear,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        preprocessing_defences=list(defences),
        device_type="cpu",
        **options,
    )


def our_gradient(purifier, linear, x, y, seed, gradient="unrolled"):
    leaf = x.clone().requires_grad_(True)
    logits = DefendedClassifier(purifier, linear, gradient=gradient)(leaf, seed=seed)
    return torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)[0].numpy()


@pytest.mark.parametrize("gradient", ["unrolled", "bpda"])
def test_loss_gradient_is_ours(purifier, linear, few, gradient):
    x, y = few
    art = wrapped(linear, PurifierPreprocessor(purifier, gradient=gradient, seed=8))
    assert art.all_framework_preprocessing
    expected = our_gradient(purifier, linear, x, y, 8, gradient)
    found = art.loss_gradient(x.numpy(), F.one_hot(y, 10).numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert float(np.abs(expected).max()) > 0.01
    with torch.no_grad():
        np.testing.assert_allclose(art.predict(x.numpy()), linear(purifier(x, seed=8)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["unrolled", "bpda"])
@pytest.mark.parametrize("seed", [8, None])
def test_estimate_gradient_belongs_to_the_value(purifier, few, gradient, seed, rng):
    """On numpy ART first calls the defence and later asks for the gradient, which must be that of the same noise."""
    x = few[0].numpy()
    defence = PurifierPreprocessor(purifier, gradient=gradient, seed=seed)
    value, labels = defence(x, few[1].numpy())
    assert labels is not None
    cotangent = rng.normal(size=x.shape).astype(np.float32)
    found = defence.estimate_gradient(x, cotangent)
    used = seed if seed is not None else defence._last[1]
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(value), purifier(few[0], seed=used))
    if gradient == "bpda":
        np.testing.assert_array_equal(found, cotangent)
        return
    leaf = few[0].clone().requires_grad_(True)
    expected = torch.autograd.grad(purifier(leaf, seed=used), leaf, torch.from_numpy(cotangent))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Several cotangents at once, as for gradients of each class.
    many = np.stack([cotangent, 2 * cotangent], axis=1)
    np.testing.assert_allclose(
        defence.estimate_gradient(x, many), np.stack([expected, 2 * expected], axis=1), rtol=1e-4, atol=1e-5
    )


def test_the_way_through_numpy(purifier, linear, few):
    """With a numpy preprocessor behind it ART calls ``__call__`` and ``estimate_gradient``; the result is the same."""
    x, y = few
    art = wrapped(linear, PurifierPreprocessor(purifier), preprocessing=StandardisationMeanStd(mean=0.0, std=2.0))
    assert not art.all_framework_preprocessing
    found = art.loss_gradient(x.numpy(), F.one_hot(y, 10).numpy())
    seed = art.preprocessing_operations[0]._last[1]
    leaf = x.clone().requires_grad_(True)
    loss = F.cross_entropy(linear(purifier(leaf, seed=seed) / 2), y, reduction="sum")
    expected = torch.autograd.grad(loss, leaf)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FastGradientMethod, {}),
        (ProjectedGradientDescentNumpy, {"eps_step": 0.06, "max_iter": 4, "verbose": False}),
        (ProjectedGradientDescent, {"eps_step": 0.06, "max_iter": 4, "verbose": False}),
    ],
)
def test_attacks_through_the_purifier(purifier, linear, few, kind, options):
    images, labels = (t.numpy() for t in few)
    # Little noise: it is fresh at each call, and the counts below must not depend on it.
    purifier.chain = purifier.chain.replace(noise_scale=0.01)
    art = wrapped(linear, PurifierPreprocessor(purifier))
    before = art.predict(images).argmax(1)
    attacked = kind(art, eps=0.2, **options).generate(images, y=labels)
    assert float(np.abs(attacked - images).max()) <= 0.2 + 1e-6
    assert int((before == labels).sum()) >= 13
    assert int((art.predict(attacked).argmax(1) == labels).sum()) <= 4


def test_fgsm_for_a_fixed_seed_is_the_sign_of_our_gradient(purifier, linear, few):
    x, y = few
    art = wrapped(linear, PurifierPreprocessor(purifier, seed=8))
    attacked = FastGradientMethod(art, eps=0.1).generate(x.numpy(), y=y.numpy())
    gradient = our_gradient(purifier, linear, x, y, 8)
    expected = np.clip(x.numpy() + 0.1 * np.sign(gradient), 0, 1)
    assert float((np.abs(attacked - expected) > 1e-6).mean()) < 0.001


def test_noise_is_fresh_unless_seeded(purifier, few):
    x = few[0].numpy()
    fresh = PurifierPreprocessor(purifier)
    torch.manual_seed(0)
    first = fresh(x)[0]
    torch.manual_seed(0)
    assert not np.array_equal(first, fresh(x)[0])
    fixed = PurifierPreprocessor(purifier, seed=1)
    assert np.array_equal(fixed(x)[0], fixed(x)[0])


def test_float64_images_come_back_as_float64(purifier, few):
    value, _ = PurifierPreprocessor(purifier, seed=1)(few[0].double().numpy())
    assert value.dtype == np.float64
    np.testing.assert_array_equal(value, purifier(few[0], seed=1).double().numpy())


def test_flags_and_wrong_arguments(purifier, linear, few):
    defence = PurifierPreprocessor(purifier)
    assert (defence.is_fitted, defence.apply_fit, defence.apply_predict) == (True, False, True)
    with pytest.raises(TypeError, match="purifier: expected a Purifier or another Defense, got Sequential"):
        PurifierPreprocessor(linear)
    with pytest.raises(ValueError, match="gradient"):
        PurifierPreprocessor(purifier, gradient="blind")
    with pytest.raises(ValueError, match="seed"):
        PurifierPreprocessor(purifier, seed=-1)
    with pytest.raises(TypeError, match="floating"):
        defence(np.zeros((1, 1, 28, 28), dtype=np.uint8))
    with pytest.raises(ValueError, match="grad: expected shape"):
        defence.estimate_gradient(few[0].numpy(), few[0].numpy()[:2])
    defence.set_params(gradient="bpda")
    assert defence.gradient == "bpda"
    with pytest.raises(ValueError, match="gradient"):
        defence.set_params(gradient="none")


@pytest.mark.slow
def test_without_art_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['art'] = None\n"
        "try:\n    import fastmalade.adapters.art\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'fastmalade[attacks]'" in result.stdout


def test_a_mean_loss_is_warned_of(purifier, linear, few):
    from fastmalade.attacks import art_classifier

    x, y = few
    shape = {"input_shape": (1, 28, 28), "n_classes": 10, "seed": 8}
    defended = DefendedClassifier(purifier, linear)
    labels = F.one_hot(y, 10).numpy()
    summed = art_classifier(defended, **shape).loss_gradient(x.numpy(), labels)
    alone = art_classifier(defended, **shape).loss_gradient(x.numpy()[:1], labels[:1])
    np.testing.assert_allclose(summed[:1], alone, rtol=1e-4, atol=1e-6)  # whatever the batch
    with pytest.warns(UserWarning, match="expected a sum over images, got a mean"):
        mean = art_classifier(defended, **shape, loss=nn.CrossEntropyLoss())
    np.testing.assert_allclose(len(x) * mean.loss_gradient(x.numpy(), labels), summed, rtol=1e-4, atol=1e-6)
