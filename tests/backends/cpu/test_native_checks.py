"""Sanitizers, the 16-lane code and the symbols of the native kernels, through tools/check_native.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import check_layout
import pytest
from repository import ROOT

SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "checks",
    [
        "address",
        "thread --isa baseline",  # the least to compile: who writes where does not depend on the instruction set
        "symbols wide",
    ],
)
def test_native_check(compiler: str, checks: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_native.py"), *checks.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 2:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": passed") == len(checks.partition(" --")[0].split())


def test_layout_of_this_checkout() -> None:
    assert check_layout.broken_rules(ROOT) == []


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("isa/vec.h", lambda text: text + "#include <algorithm>\n", "got <algorithm>"),
        ("kernels.h", lambda text: text + "#include <vector>\n", "got <vector>"),
        ("isa/tail.h", lambda text: text + '#include "cpu/host/memory.h"\n', "got 'cpu/host/memory.h'"),
        ("host/pool.h", lambda text: text + '#  include "cpu/isa/vec.h"\n', "got 'cpu/isa/vec.h'"),
        ("isa/noise.h", lambda text: text.replace("FASTMALADE_ISA", "avx2"), "belongs in host/"),
        ("host/engine.cpp", lambda text: text + "int FASTMALADE_ISA;\n", "belongs in isa/"),
    ],
)
def test_layout_rules_are_seen_to_be_broken(
    tmp_path: Path, path: str, change: Callable[[str], str], message: str
) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    file = tmp_path / "kernels" / "cpu" / path
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    (finding,) = check_layout.broken_rules(tmp_path)
    assert finding.startswith(f"kernels/cpu/{path}: expected")
    assert message in finding


def test_flags_never_name_this_machine(setup_file: ModuleType) -> None:
    flags = [flag for isa in setup_file.isa_flags().values() for flag in isa] + setup_file.KERNEL_FLAGS
    assert "-ffp-contract=off" in flags
    assert not any(flag.startswith(("-march", "-mtune", "-mcpu", "-ffast-math")) for flag in flags)
    assert setup_file.isa_flags()["baseline"] == []


def test_native_sources_include_no_torch_and_kernels_no_python() -> None:
    sources = [p for folder in ("csrc", "kernels") for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    assert len(sources) > 5
    for path in sources:
        includes = re.findall(r"^\s*#\s*include\s*([<\"].*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        banned = "torch|ATen|c10|numpy" + (r"|Python\.h|pybind11" if "kernels" in path.parts else "")
        assert not [line for line in includes if re.search(banned, line)], path
