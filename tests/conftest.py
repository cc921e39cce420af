"""Fixtures for all tests: small models, real digits, the full MNIST where it is installed, one thread."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import emulated
import numpy as np
import pytest
import torch
from repository import built_once
from small_defenses import small_defense
from torch import Tensor, nn

from fastmalade import Autoencoder, ChainConfig, Defense, Purifier, backends
from fastmalade.data import DataNotFoundError, embedded_digits, find_data_dir, load_mnist

if importlib.util.find_spec("hypothesis") is not None:  # `make gpu-check` does without it
    from hypothesis import settings

    # The same examples in every run, so that a failure is the change's; `make fuzz` draws others, and more.
    settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=40)
    settings.register_profile("fuzz", derandomize=False, deadline=None, max_examples=2000)
    settings.load_profile("repeatable")


def pytest_configure() -> None:
    """One thread: the arrays are small, and two processes run side by side. Tests of threads set their own number."""
    torch.set_num_threads(1)


# Begun last, one of these would leave the other process idle.
LONG = (
    "test_native_checks.py",
    "test_distribution.py",
    "test_under_interpreter.py",
    "test_compiled.py",
    "test_races.py",
    "test_contenders.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, the rest in order; ``complete`` ones only where FASTMALADE_COMPLETE_TESTS=1."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if os.environ.get("FASTMALADE_COMPLETE_TESTS", "0") in {"", "0"}:
        for item in items:
            if item.get_closest_marker("complete"):
                item.add_marker(pytest.mark.skip(reason="part of the complete set: make emulate"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With FASTMALADE_REQUIRE_CUDA=1, on a machine that is there for them, a skipped test of the GPU is a failure."""
    result = yield
    report = result.get_result()
    required = os.environ.get("FASTMALADE_REQUIRE_CUDA", "0") not in {"", "0"}
    if required and report.skipped and item.get_closest_marker("gpu"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"FASTMALADE_REQUIRE_CUDA=1: {why}"


def pytest_collection_finish() -> None:
    """What was imported stays until the end: collections of garbage, of which some tests force many, skip it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain at exit of what a collection did not reach


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


@pytest.fixture(params=["torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend of a CPU in turn; a skip where the extension is missing."""
    reason = backends.available()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture
def no_file_over() -> Callable[[int], AbstractContextManager[None]]:
    """A full disk for everybody: in ``with no_file_over(size)`` a write beyond that many bytes is an OSError."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++20 compiler's path, or a skip."""
    path = shutil.which("g++") or shutil.which("clang++")
    if path is None:
        pytest.skip("no C++ compiler on this machine")
    return path


@pytest.fixture(scope="session")
def emulation(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> emulated.Emulation:
    """The CUDA kernels with every CUDA thread a fiber: quick, and strict about barriers."""
    build = functools.partial(emulated.compile_library, compiler)
    return emulated.Emulation(built_once(tmp_path_factory, "fibers.so", build))


@pytest.fixture
def make_autoencoder() -> Callable[..., Autoencoder]:
    """Autoencoders with Xavier weights and non-zero biases, repeatable and without the global generator."""

    def make(
        channels: int = 1,
        hidden: tuple[int, int] = (10, 25),
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Autoencoder:
        generator = torch.Generator().manual_seed(seed)
        model = Autoencoder(channels, hidden, generator=generator)
        with torch.no_grad():
            for bias in model.weights()[1::2]:
                bias.uniform_(-0.2, 0.4, generator=generator)
        return model.to(dtype)

    return make


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    """Images of uniform noise in [0, 1] of a shape and a seed."""

    def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def make_defense() -> Callable[..., Defense]:
    """Builds a small defence by name, always with the same parameters."""
    return small_defense


@pytest.fixture
def purifier(make_autoencoder: Callable[..., Autoencoder]) -> Purifier:
    """Three steps of decreasing size, with noise, of an untrained autoencoder."""
    config = ChainConfig(n_steps=3, step_size=0.3, noise_scale=0.1, decay=0.5, offset=2.0)
    return Purifier(make_autoencoder().requires_grad_(False), config).eval()


@pytest.fixture(scope="module")
def quick_measurements() -> Iterator[None]:
    """Benchmarks that measure no longer than it takes to have a number: for tests of what is made of the numbers."""
    from fastmalade.bench import ceilings, timing, verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "COPY_BYTES", 1 << 20)
        patch.setattr(ceilings, "fma_ceiling", functools.partial(ceilings.fma_ceiling, seconds=0.01))
        patch.setattr(timing, "TURN_SECONDS", 0.001)
        patch.setattr(verify, "NOISE_SAMPLES", 5_000)
        yield


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
