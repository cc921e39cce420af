"""Fixtures that all tests share: real digits, the full MNIST where it is, two threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmalade.data import DataNotFoundError, embedded_digits, find_data_dir, load_mnist


def pytest_configure() -> None:
    """Two threads everywhere, so that a run on a large machine tests what a run on a small one does."""
    torch.set_num_threads(2)


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
