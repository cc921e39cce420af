"""Fixtures of the CUDA tests: the kernels over the CPU emulation, compiled once."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import filelock
import pytest
import torch

HERE = Path(__file__).resolve().parent
# pytest's importlib mode leaves sys.path alone; references and helpers are modules beside the tests.
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "kernels"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

import emulated  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread(_threads_as_before: None) -> None:
    """Arrays here are a few images: a second thread of torch's costs more than it does, most of all on busy cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++20 compiler's path, or a skip."""
    path = shutil.which("g++") or shutil.which("clang++")
    if path is None:
        pytest.skip("no C++ compiler on this machine")
    return path


@pytest.fixture(scope="session")
def emulation(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> emulated.Emulation:
    """The kernels with every CUDA thread a fiber: quick, and strict about barriers. Compiled once for all workers."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    library = folder / "fibers.so"
    with filelock.FileLock(folder / "fibers.lock"):
        if not library.exists():
            emulated.compile_library(compiler, folder / "unfinished.so").rename(library)
    return emulated.Emulation(library)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``complete`` run where FASTMALADE_COMPLETE_TESTS=1 (`make emulate`): together they take minutes."""
    if os.environ.get("FASTMALADE_COMPLETE_TESTS", "0") not in {"", "0"}:
        return
    for item in items:
        if item.get_closest_marker("complete"):
            item.add_marker(pytest.mark.skip(reason="part of the complete set: make emulate"))
