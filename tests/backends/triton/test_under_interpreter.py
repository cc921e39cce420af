"""Runs tests/backends/triton/interpreted in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
EXPECTED_TESTS = 30
"""At least so many have to pass: a folder that is not collected proves nothing."""


def needs_an_older_numpy(version: str) -> bool:
    """Whether this Triton's interpreter makes an int of an array of one element and this numpy refuses that."""
    if tuple(int(part) for part in version.split(".")[:2]) >= (3, 7):
        return False
    try:
        return int(np.ones(1)) != 1
    except TypeError:
        return True


def test_every_kernel_under_the_interpreter() -> None:
    triton = pytest.importorskip("triton", reason="the package triton is not installed")
    if needs_an_older_numpy(triton.__version__):
        pytest.skip(f"the interpreter of Triton {triton.__version__} does not work with numpy {np.__version__}")
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("FASTMALADE_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted")],
        env={**variables, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= EXPECTED_TESTS, done.stdout
    assert "skipped" not in done.stdout, done.stdout
