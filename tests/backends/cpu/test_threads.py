"""The thread pool: affinity, thread counts, concurrent callers, forks, threads at exit, memory between calls."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import reference64
import torch
from repository import HELPERS, ROOT

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps

WEIGHTS = reference64.random_weights(1, 3, 4)
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU masks")


@pytest.fixture
def extension(native) -> ModuleType:
    return importlib.import_module("fastmalade._cpu")


@pytest.fixture
def whole_affinity() -> Iterator[set[int]]:
    """The CPUs of this thread, put back afterwards; a skip where there is one alone."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("this process may use one CPU only")
    yield before
    os.sched_setaffinity(0, before)


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


def chain(x: torch.Tensor, seed: int = 5) -> torch.Tensor:
    return cpu.langevin_chain(x, WEIGHTS, Steps((0.2,) * 4, (0.1,) * 4, (0.0,) * 4, (1.0,) * 4), NoiseSource(seed))


def joins_during(extension: ModuleType, calls: Callable[[], object]) -> int:
    """How often a worker joined a call meanwhile."""
    before = extension.pool_info()
    calls()
    after = extension.pool_info()
    assert after["calls"] > before["calls"]
    return after["joins"] - before["joins"]


def joined_within(extension: ModuleType, attempts: int = 200) -> bool:
    """Whether a worker joins one of so many calls: a busy machine may run it too late for any single one."""
    x = images(600)
    return any(joins_during(extension, lambda: chain(x)) > 0 for _ in range(attempts))


@needs_affinity
def test_workers_join_where_there_are_cpus(extension, whole_affinity) -> None:
    torch.set_num_threads(2)
    assert joined_within(extension)
    info = extension.pool_info()
    assert info["cpus"] == len(whole_affinity)
    assert 1 <= info["workers"] < max(len(whole_affinity), os.cpu_count() or 1)


@needs_affinity
def test_one_cpu_means_one_thread(extension, whole_affinity) -> None:
    torch.set_num_threads(2)
    assert joined_within(extension)
    expected = chain(images(600))
    os.sched_setaffinity(0, {max(whole_affinity)})
    assert extension.pool_info()["cpus"] == 1
    results: list[torch.Tensor] = []
    assert joins_during(extension, lambda: results.extend(chain(images(600)) for _ in range(20))) == 0
    assert all(torch.equal(result, expected) for result in results)
    os.sched_setaffinity(0, whole_affinity)
    assert joined_within(extension), "the pool did not come back after the mask was widened"


def test_set_num_threads_1_means_one_thread(extension) -> None:
    torch.set_num_threads(1)
    assert joins_during(extension, lambda: [chain(images(600)) for _ in range(20)]) == 0


def test_one_task_runs_alone(extension) -> None:
    torch.set_num_threads(2)
    assert joins_during(extension, lambda: [chain(images(1)) for _ in range(20)]) == 0


@needs_affinity
def test_workers_take_over_the_mask_of_their_caller(extension, whole_affinity) -> None:
    # A worker that was started by a pinned thread, or was moved, works for others on their CPUs.
    torch.set_num_threads(2)
    chain(images(600))
    masks = {task: os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}
    one = {min(whole_affinity)}
    for task in masks:
        os.sched_setaffinity(int(task), one)
    try:
        os.sched_setaffinity(0, whole_affinity)
        assert joined_within(extension)
        moved = [os.sched_getaffinity(int(task)) for task in masks if int(task) != threading.get_native_id()]
        assert whole_affinity in moved
    finally:
        for task, mask in masks.items():
            os.sched_setaffinity(int(task), mask)


def test_concurrent_callers_share_the_workers(extension) -> None:
    torch.set_num_threads(2)
    inputs = [images(40 + n, seed=n) for n in range(6)]
    expected = [chain(x, seed=n) for n, x in enumerate(inputs)]
    wrong: list[int] = []

    def call(n: int) -> None:
        wrong.extend(n for _ in range(30) if not torch.equal(chain(inputs[n], seed=n), expected[n]))

    callers = [threading.Thread(target=call, args=(n,)) for n in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []
    info = extension.pool_info()
    assert info["workers"] <= max(info["cpus"], os.cpu_count() or 1) - 1
    assert info["most_at_work"] <= len(callers) + info["workers"]


# What a child does. Plain Python numbers travel: a tensor would open shared memory that the child takes with it.
def _answer(sender, x: torch.Tensor) -> None:
    torch.set_num_threads(2)
    results = [chain(x).flatten().tolist() for _ in range(3)]
    extension = importlib.import_module("fastmalade._cpu")
    sender.send((results, extension.pool_info()["calls"], extension.packed_cache_info()))
    sender.close()


def _check_child(method: str) -> None:
    x = images(33)
    expected = chain(x).flatten().tolist()
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, x))
    child.start()
    sender.close()
    assert receiver.poll(120), f"the child ({method}) did not answer"
    results, calls, cache = receiver.recv()
    child.join(120)
    assert child.exitcode == 0
    assert results == [expected] * 3
    # Both start afresh: what the parent had may have been copied in the middle of a change.
    assert calls == 3
    assert (cache["misses"], cache["hits"]) == (1, 2)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_children_start_with_a_pool_of_their_own(extension, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform does not {method}")
    torch.set_num_threads(2)
    chain(images(600))
    _check_child(method)
    before = extension.pool_info()
    assert torch.equal(chain(images(33)), chain(images(33)))
    assert extension.pool_info()["calls"] == before["calls"] + 2


def test_fork_while_another_thread_is_inside_a_call(extension) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this platform does not fork")
    torch.set_num_threads(2)
    x, expected = images(200), chain(images(200))
    stop, wrong = threading.Event(), []

    def keep_calling() -> None:
        while not stop.is_set():
            wrong.extend([1] * (not torch.equal(chain(x), expected)))

    callers = [threading.Thread(target=keep_calling) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(5):
            _check_child("fork")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert wrong == []


def run_script(body: str, *, seconds: int = 120) -> subprocess.CompletedProcess:
    """A process of its own with the package importable."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], env=environment, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip


PREAMBLE = """
import threading, torch, reference64
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps
torch.set_num_threads(2)
weights = reference64.random_weights(1, 10, 25)
steps = Steps((0.1,) * 10, (0.1,) * 10, (0.0,) * 10, (1.0,) * 10)
def chain(batch):
    return cpu.langevin_chain(torch.rand(batch, 1, 28, 28), weights, steps, NoiseSource(1))
chain(64)
"""


@pytest.mark.slow
def test_exit_while_daemon_threads_are_inside_calls(native) -> None:
    # Calls into the extension alone: torch's own operators end the process if a daemon thread is inside one at exit.
    # Five exits, four of them of forked children: importing torch takes longer than all of them.
    body = PREAMBLE + textwrap.dedent("""
        import importlib, os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(4):
            child = os.fork()
            if child == 0:
                break
            assert os.waitpid(child, 0)[1] == 0
        extension = importlib.import_module("fastmalade._cpu")
        ids, z = torch.arange(64), [torch.empty(64, 20000) for _ in range(2)]
        started = [threading.Event() for _ in range(2)]
        def forever(n):
            while True:
                started[n].set()
                extension.standard_normal(isa="baseline", seed=1, sample_ids=ids.data_ptr(), batch=64, step=0,
                                          elements=20000, z=z[n].data_ptr(), threads=2)
        for n in range(2):
            threading.Thread(target=forever, args=(n,), daemon=True).start()
        for event in started:
            event.wait()
        print("end")
    """)
    result = run_script(body)
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n" * 5, "")


@pytest.mark.slow
def test_workers_take_no_signals_and_idle_ones_let_the_process_end(native) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc")
    result = run_script(
        "import os\nbefore = set()\n" + PREAMBLE.replace("\nchain(64)", "\nbefore = set(os.listdir('/proc/self/task'))")
        + textwrap.dedent("""
        def blocked(task):
            lines = open(f"/proc/self/task/{task}/status").read().splitlines()
            return int(next(line for line in lines if line.startswith("SigBlk")).split()[1], 16)
        for _ in range(3):
            chain(600)
        import signal, importlib
        new = set(os.listdir("/proc/self/task")) - before
        workers = [task for task in new if blocked(task) >> (signal.SIGINT - 1) & 1]
        info = importlib.import_module("fastmalade._cpu").pool_info()
        print(len(workers) >= info["workers"], bool(blocked(os.getpid()) >> (signal.SIGINT - 1) & 1))
        """)
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "True False\n", "")


@pytest.mark.slow
def test_soak_in_short(native) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.skip("needs /proc")
    command = [sys.executable, str(ROOT / "tools" / "soak.py"), "--images", "6000", "--intervals", "6", "--side", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("growth")
