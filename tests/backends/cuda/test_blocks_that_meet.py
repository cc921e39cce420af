"""The barrier of blocks through device memory (kernels/cuda/exchange.cuh) by itself, in the emulation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import emulated
import pytest


@pytest.fixture(scope="module")
def program(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("blocks") / "blocks_that_meet"
    source = Path(__file__).with_name("blocks_that_meet.cpp")
    command = [compiler, "-std=c++20", "-DFASTMALADE_EMULATION", f"-I{emulated.ROOT / 'kernels'}", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def run(program: Path, *arguments: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("blocks", [1, 2, 5, 16])
@pytest.mark.parametrize("start", [0, 2**31])
def test_nobody_goes_on_before_all_have_arrived(program: Path, blocks: int, start: int) -> None:
    assert run(program, blocks, start, -1).returncode == 0


@pytest.mark.parametrize("absent", [0, 2])
def test_a_block_that_does_not_come_is_an_error_and_no_hang(program: Path, absent: int) -> None:
    result = run(program, 3, 0, absent)
    assert result.returncode == 1
    assert result.stdout.startswith("emulation: a barrier that not all threads reach")
