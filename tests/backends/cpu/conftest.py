"""Fixtures of the kernel tests: every instruction set by turn, native tools found."""

from __future__ import annotations

from types import ModuleType

import check_native
import pytest

from fastmalade.backends.cpu import calls as cpu


def _isas() -> list[object]:
    """Every instruction set; the same tests on other than the widest of this processor are repetition."""
    names = ["baseline", "avx2", "avx512"]
    widest = cpu.isas_supported()[-1] if cpu.unavailable_reason() is None else "baseline"
    return [name if name == widest else pytest.param(name, marks=pytest.mark.repetition) for name in names]


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one instruction set; skips where the build or the processor lacks it, saying which."""
    reason = cpu.unavailable_reason()
    if reason is not None:
        pytest.skip(f"no native CPU backend: {reason}")
    if request.param not in cpu.isas_built():
        pytest.skip(f"this build has no {request.param}: {cpu.isas_built()}")
    if request.param not in cpu.isas_supported():
        pytest.skip(f"this processor does not run {request.param}")
    monkeypatch.setenv("FASTMALADE_CPU_ISA", request.param)
    return str(request.param)


@pytest.fixture
def native() -> ModuleType:
    """The cpu backend, or a skip with the reason it is not there."""
    reason = cpu.unavailable_reason()
    if reason is not None:
        pytest.skip(f"no native CPU backend: {reason}")
    return cpu


@pytest.fixture
def setup_file() -> ModuleType:
    """setup.py as a module (it builds nothing when imported): the flags of every instruction set."""
    return check_native.load_setup()
