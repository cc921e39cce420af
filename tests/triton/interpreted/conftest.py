"""Fixtures of the tests that run the Triton kernels on the CPU, in Triton's interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[2]
# pytest's importlib mode leaves sys.path alone; the references are a module of the kernel tests.
sys.path[:0] = [str(TESTS / "kernels")]


def pytest_configure() -> None:
    torch.set_num_threads(1)
