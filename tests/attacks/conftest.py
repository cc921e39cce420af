"""Digits, a softmax regression fitted to them, and short chains: what the tests of attacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Purifier


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny tensors on a busy machine: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
