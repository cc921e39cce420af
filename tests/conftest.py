"""Fixtures that all tests share: real digits, the full MNIST where it is, few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmalade.data import DataNotFoundError, embedded_digits, find_data_dir, load_mnist


def pytest_configure() -> None:
    """Two threads everywhere, so that a run on a large machine tests what a run on a small one does.

    One in each of several processes that run tests side by side: threads would only wait for each other there.
    """
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


# A few tests of a minute each: begun last, they would leave one of two processes idle.
LONG = (
    "test_native_checks.py",
    "test_distribution.py",
    "test_under_interpreter.py",
    "test_compiled.py",
    "test_races.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, the rest in order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A test that changes the number of threads changes it for itself only."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose backends and instruction sets themselves."""
    for name in ("FASTMALADE_BACKEND", "FASTMALADE_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the name of the test: the same in every run, different in every test."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The digits inside the package: images (1000, 1, 28, 28) float32 in [0, 1], labels (1000,) int64."""
    images, labels = embedded_digits()
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels)


@pytest.fixture(scope="session")
def mnist() -> dict[str, tuple[Tensor, Tensor]]:
    """The full MNIST by split; tests that use it carry the marker ``mnist`` and are skipped without it."""
    try:
        find_data_dir()
    except DataNotFoundError as error:
        pytest.skip(str(error))
    return {
        "train": load_mnist("train"),
        "validation": load_mnist("validation"),
        "test": load_mnist("test"),
    }


@pytest.fixture(scope="session")
def fit_softmax() -> Callable[[Tensor, Tensor], nn.Module]:
    """Fits a softmax regression to digits (n, 1, 28, 28) and their labels: quick to train and easy prey."""
    return _fit_softmax


def _fit_softmax(images: Tensor, labels: Tensor) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()
