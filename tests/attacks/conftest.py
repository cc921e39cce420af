"""Digits, a softmax regression fitted to them, and short chains: what the tests of attacks share."""

from __future__ import annotations

import pytest
import torch

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Purifier


@pytest.fixture(scope="session")
def linear(digits, fit_softmax):
    """Softmax regression: quick, easy prey, and its gradient can be written down."""
    return fit_softmax(*digits)


@pytest.fixture
def purifier():
    """Three steps that change an image a little, with noise."""
    autoencoder = Autoencoder(generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    return Purifier(autoencoder, ChainConfig(n_steps=3, step_size=0.05, noise_scale=0.1)).eval()


@pytest.fixture
def defended(purifier, linear):
    return DefendedClassifier(purifier, linear).eval()


@pytest.fixture
def few(digits):
    """Sixteen digits, all classes among them."""
    images, labels = digits
    return images[::63].clone(), labels[::63].clone()
