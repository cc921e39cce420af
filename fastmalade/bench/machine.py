"""The machine that a result belongs to, and holding the process to some of its processors."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import fastmalade
from fastmalade import backends

BUSY_LOAD = 0.5


def describe() -> dict[str, Any]:
    """Processor, cores, frequencies where the system tells them, instruction sets and system, as JSON values."""
    cpu_reason = backends.available()["cpu"]
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable()),
        "megahertz": _frequencies(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": _memory(),
        "isas": backends.cpu.calls.isas_supported() if cpu_reason is None else [],
        "system": platform.system(),
        "kernel": platform.release(),
    }


def commit() -> dict[str, Any]:
    """Commit of the source tree that fastmalade is imported from, and whether tracked files differ from it.

    Both None where that is not a git working tree. Results of earlier runs do not count as a difference.
    """
    root = Path(fastmalade.__file__).resolve().parents[1]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"id": None, "dirty": None}
    changes = _git(root, "diff", "HEAD", "--name-only", "--", ".", ":(exclude)benchmarks/results")
    return {"id": _git(root, "rev-parse", "HEAD"), "dirty": bool(changes)}


def warnings(load: float | None = None) -> list[str]:
    """What makes a result doubtful from the start: other work on the machine."""
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= BUSY_LOAD:
        return []
    return [f"the load average was {load:.1f} at the start: other programs were running"]


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Hold every thread of the process to ``threads`` processors, on cores of their own where there are enough.

    That also limits libraries whose number of threads cannot be set, or is set differently in each version, and keeps
    threads from migrating. Gives the processors, or None where the system has no affinity (macOS, Windows).

    Raises:
        ValueError: more threads than processors that the process may use.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = usable()
    if not 1 <= threads <= len(before):
        raise ValueError(f"threads: expected 1 to {len(before)}, the processors of this process, got {threads}")
    chosen = _distinct_cores(sorted(before))[:threads]
    torch_threads = torch.get_num_threads()
    _set_affinity(set(chosen))
    torch.set_num_threads(threads)
    try:
        yield chosen
    finally:
        torch.set_num_threads(torch_threads)
        _set_affinity(before)


def usable() -> set[int]:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _set_affinity(cpus: set[int]) -> None:
    # The call is per thread; those that exist already do not follow the main thread.
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cpus)
        except ProcessLookupError:
            continue  # the thread has ended since it was listed


def _distinct_cores(cpus: list[int]) -> list[int]:
    """The processors with the first of each core before the second ones."""
    seen: dict[str, int] = {}
    ranked = []
    for cpu in cpus:
        core = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        ranked.append((seen.get(core, 0), cpu))
        seen[core] = seen.get(core, 0) + 1
    return [cpu for _, cpu in sorted(ranked)]


def _cpuinfo(field: str) -> str | None:
    text = _read("/proc/cpuinfo") or ""
    match = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _frequencies() -> list[float]:
    return [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read("/proc/cpuinfo") or "", re.M)]


def _memory() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo") or "", re.M)
    return int(match[1]) * 1024 if match else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None  # not every system tells


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
