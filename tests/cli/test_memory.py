"""Memory that a command frees is kept for its next layer."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.cli.app import main
kept = keep_freed_memory() if sys.argv[1] == "kept" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.set_num_threads(1)
for megabytes in (3, 40, 100):
    torch.ones(megabytes * 2**18)
before = faults()
for _ in range(5):
    for megabytes in (100, 3, 40):
        torch.ones(megabytes * 2**18)
print(kept, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_blocks_are_not_given_back():
    found = {}
    for how in ("kept", "as usual"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        kept, found[how] = done.stdout.split()
        assert kept == ("True" if how == "kept" else "None")
    assert int(found["as usual"]) > 1000  # which is why
    # A block that no longer fits where it was may be taken anew once: 768 pages of 3 MB have been seen.
    assert 20 * int(found["kept"]) < int(found["as usual"])
