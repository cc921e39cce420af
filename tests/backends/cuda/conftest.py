"""Fixtures of the CUDA tests: the kernels over the CPU emulation, compiled once."""

from __future__ import annotations

import functools
import os
import shutil

import emulated
import pytest
from repository import built_once


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
    build = functools.partial(emulated.compile_library, compiler)
    return emulated.Emulation(built_once(tmp_path_factory, "fibers.so", build))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``complete`` run where FASTMALADE_COMPLETE_TESTS=1 (`make emulate`): together they take minutes."""
    if os.environ.get("FASTMALADE_COMPLETE_TESTS", "0") not in {"", "0"}:
        return
    for item in items:
        if item.get_closest_marker("complete"):
            item.add_marker(pytest.mark.skip(reason="part of the complete set: make emulate"))
