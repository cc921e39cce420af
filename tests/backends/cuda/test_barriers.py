"""The barriers of the emulation by themselves: they hold everybody, and one that somebody misses is an error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulated
import pytest


@pytest.fixture(scope="module")
def program(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("barriers") / "barriers"
    source = Path(__file__).with_name("barriers.cpp")
    command = [compiler, "-std=c++20", "-DFASTMALADE_EMULATION", f"-I{emulated.ROOT / 'kernels'}", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("scope", ["block", "cluster"])
def test_nobody_goes_on_before_all_have_arrived(program: Path, scope: str) -> None:
    assert run(program, scope, -1).returncode == 0


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize(("scope", "message"), [
    ("block", "a thread ended while others wait at a barrier"),
    ("cluster", "a thread ended while others wait at a barrier"),
    ("mixed", "a barrier that not all threads reach"),
])  # fmt: skip
def test_a_thread_that_does_not_come_is_an_error_and_no_hang(program: Path, scope: str, message: str, odd: int) -> None:
    result = run(program, scope, odd)
    assert result.returncode == 1
    assert result.stdout.startswith(f"emulation: {message}")
