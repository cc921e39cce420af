"""DefendedClassifier inside foolbox and ART, unmodified, on real digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastmalade import DefendedClassifier
from fastmalade.data import embedded_digits


@pytest.fixture(scope="module")
def digits():
    images, labels = embedded_digits()
    order = np.random.default_rng(0).permutation(len(images))
    return torch.from_numpy(images[order]).float()[:, None] / 255, torch.from_numpy(labels[order])


@pytest.fixture(scope="module")
def classifier(digits, fit_softmax):
    """Softmax regression fitted to the digits: quick, and easy prey."""
    return fit_softmax(*digits)


@pytest.fixture
def weak(purifier, classifier):
    """A chain that hardly changes an image, so that an attack through it must succeed."""
    purifier.chain = purifier.chain.replace(step_size=0.02, noise_scale=0.02)
    return lambda **options: DefendedClassifier(purifier, classifier, **options).eval()


def correct(model, images, labels) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


@pytest.mark.parametrize("gradient", ["unrolled", "bpda", "blind"])
def test_foolbox(digits, weak, gradient):
    foolbox = pytest.importorskip("foolbox")
    images, labels = (t[:64] for t in digits)
    model = weak(gradient=gradient, n_chains=2)
    attack = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.25)
    _, clipped, success = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=0.2)
    assert clipped.shape == images.shape
    assert float((clipped - images).abs().max()) <= 0.2 + 1e-6
    assert float(clipped.min()) >= 0.0
    assert float(clipped.max()) <= 1.0
    assert correct(model, images, labels) >= 56
    assert correct(model, clipped, labels) <= 16
    assert int(success.sum()) >= 48


def test_art(digits, weak):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    images, labels = (t[:64] for t in digits)
    model = weak(gradient="unrolled")
    wrapped = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, clip_values=(0.0, 1.0)
    )
    attack = ProjectedGradientDescent(wrapped, eps=0.2, eps_step=0.05, max_iter=5, verbose=False)
    attacked = attack.generate(images.numpy(), y=labels.numpy())
    assert attacked.shape == tuple(images.shape)
    assert float(np.abs(attacked - images.numpy()).max()) <= 0.2 + 1e-6
    before = wrapped.predict(images.numpy()).argmax(1)
    after = wrapped.predict(attacked).argmax(1)
    assert int((before == labels.numpy()).sum()) >= 56
    assert int((after == labels.numpy()).sum()) <= 16
