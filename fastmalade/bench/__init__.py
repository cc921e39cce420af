"""The native chain against every other way to compute it, in one run, on the same work.

``fastmalade bench`` is the command. Each contender is verified before it is timed, all take turns, and the result names
machine, versions and commit. Peers come with the extra ``fastmalade[bench]``; one that is not installed is left out by
name.
"""

from __future__ import annotations

from fastmalade.bench.flops import flops_per_image, stage_flops
from fastmalade.bench.runner import run
from fastmalade.bench.settings import Settings

__all__ = ["Settings", "flops_per_image", "run", "stage_flops"]
