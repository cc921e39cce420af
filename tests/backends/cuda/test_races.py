"""The CUDA kernels with one CPU thread for every CUDA thread, under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.slow

# Every barrier of the kernels but 10, which belongs to the fixed shape.
BARRIERS = [1, 2, 3, 4, 5, 6, 21, 22, 23, 24, 25, 26, 27, 28]
# All of the chain on tensor cores; products of a warp's lanes order no access to memory, there as in the emulation.
TENSOR_BARRIERS = [1, 2, 4, 5, 6, 10]


@pytest.fixture(scope="module")
def races(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, instrumented; a skip where the compiler has no ThreadSanitizer."""
    target = tmp_path_factory.mktemp("races") / "races"
    # -g1: names and lines in a report; all of -g takes a quarter longer.
    command = [compiler, "-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-pthread", "-fsanitize=thread",
               "-DFASTMALADE_EMULATION", "-DFASTMALADE_EMULATION_THREADS", f"-I{emulated.ROOT / 'kernels'}",
               "-x", "c++", *(str(emulated.ROOT / source) for source in emulated.SOURCES[:2]),
               str(emulated.ROOT / "kernels/cuda/emulation/races.cpp"), "-o", str(target)]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "tsan" in built.stderr:
        pytest.skip(f"no ThreadSanitizer here: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    return target


def run(races: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(races), *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"TSAN_OPTIONS": "exitcode=66 halt_on_error=1"}
    )
    if "unexpected memory mapping" in result.stderr:
        pytest.skip(f"ThreadSanitizer does not run here: {result.stderr.strip()}")
    return result


def test_no_race(races: Path) -> None:
    result = run(races)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_missing_barrier_is_found(races: Path, barrier: int) -> None:
    result = run(races, barrier)
    assert result.returncode == 66, f"barrier {barrier} left out, and nothing found: {result.stderr[-1000:]}"
    assert "data race" in result.stderr


def test_no_race_in_the_fixed_shape(races: Path) -> None:
    result = run(races, 0, "digits")
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_barrier_of_conv2_in_place_is_needed(races: Path) -> None:
    assert run(races, 10, "digits").returncode == 66


def test_no_race_on_tensor_cores(races: Path) -> None:
    result = run(races, 0, "tensor")
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("barrier", TENSOR_BARRIERS)
def test_a_missing_barrier_on_tensor_cores_is_found(races: Path, barrier: int) -> None:
    result = run(races, barrier, "tensor")
    assert result.returncode == 66, f"barrier {barrier} left out, and nothing found: {result.stderr[-1000:]}"
    assert "data race" in result.stderr
