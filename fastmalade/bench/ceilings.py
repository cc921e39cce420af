"""What the machine could do at best, measured in the same run: multiply-adds and bandwidth."""

from __future__ import annotations

import importlib
import time
from types import ModuleType

import numpy as np

COPY_BYTES = 1 << 28


def native_module() -> ModuleType | None:
    """The extension, or None where it was not built."""
    try:
        return importlib.import_module("fastmalade._cpu")
    except ImportError:
        return None


def fma_ceiling(isa: str, seconds: float = 0.2) -> float | None:
    """Measured fp32 multiply-add rate of one core with an instruction set, FLOP/s; None where it cannot be measured."""
    measure = getattr(native_module(), "fma_ceiling", None)
    return None if measure is None else float(measure(isa, seconds))


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes read plus bytes written per second of the fastest copy of a 256 MiB array by one thread."""
    source = np.zeros(COPY_BYTES, np.uint8)
    target = np.ones(COPY_BYTES, np.uint8)
    source[:] = 1
    fastest = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        np.copyto(target, source)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * COPY_BYTES / fastest
