"""Times two checkouts against each other in one run: is the new code as fast as the old, to a percent?

    python tools/paired_timing.py OLD NEW                  folders, each with its own .venv
    python tools/paired_timing.py OLD NEW --old-python python3 --new-python python3 --output ratios.json

Each checkout has a few processes that live as long as the run and do no more than import the package. In every round
one of each checkout splits off a fresh child (fork), and short bursts of calls alternate between the two children, with
one thread on one core, in turned order from case to case and from round to round: the clock rate and the load of the
machine meet both. Of a burst counts the call that took the least processor time: what others on the core take is not in
it.

So many processes because memory lies elsewhere in each. Which pages share a place in the caches makes one process up to
a few percent faster than another of the same code, for as long as it lives, and what a child inherits does the same to
all children of a process; only the mean over many says something of the code. For the same reason every process imports
a copy of the package, which the system keeps in pages of its own, and gives back no memory that it has freed (MALLOC
variables): else the edge of the heap decides which calls ask for pages.

Printed is for each case the median over the rounds of new/old, a 95% interval (bootstrap over the processes), and the
fastest call of each by the clock on the wall. Only the public API is called, so that the two may differ in everything
inside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

BATCHES = (1, 4, 64)
BURST_SECONDS, LEAST_CALLS = 0.006, 2
LONG_CASES_EVERY = 3  # turns of a pair; calls of which no more than two fit a burst vary less from child to child
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30),
               "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26)}  # fmt: skip


def cases() -> dict[str, Callable[[], object]]:
    """Calls to time, by name. Nothing is computed yet: what the first call sets up belongs to a child."""
    import torch
    from torch import Tensor

    from fastmalade import Purifier, data

    images, _ = data.embedded_digits()
    purifier = Purifier.from_pretrained("malade-mnist")

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return purifier(x)

    def gradient(x: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(purifier(x), x, cotangent)

    found: dict[str, Callable[[], object]] = {}
    for batch in BATCHES:
        x = torch.from_numpy(images[:batch]).unsqueeze(1).float() / 255
        found |= {
            f"forward-{batch}": partial(forward, x),
            f"gradient-{batch}": partial(gradient, x.clone().requires_grad_(), x - 0.5),
            f"purify-numpy-{batch}": partial(purifier.purify, x.numpy()),
            f"purify-torch-{batch}": partial(purifier.purify, x),
        }
    # Imports that the package leaves to the first call are done here once, for no images.
    none = x[:0]
    forward(none)
    gradient(none.clone().requires_grad_(), none)
    purifier.purify(none.numpy())
    return found


def serve(checkout: Path, core: int) -> None:
    """A process of a checkout: for each line "fork" a child that answers bursts until the line "end"."""
    sys.path.insert(0, str(checkout))
    import torch

    import fastmalade

    if checkout not in Path(fastmalade.__file__).resolve().parents:
        raise RuntimeError(f"expected fastmalade of {checkout}, got {fastmalade.__file__}")
    torch.set_num_threads(1)
    calls = cases()
    os.sched_setaffinity(0, {core})
    print(json.dumps(list(calls)), flush=True)
    while sys.stdin.readline() == "fork\n":
        child = os.fork()
        if child == 0:
            answer_bursts(calls)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("ended" if status == 0 else f"a child ended with status {status}", flush=True)


def answer_bursts(calls: dict[str, Callable[[], object]]) -> None:
    """Reads a case and a number of calls a line; answers with the least processor and wall time of a call in ns."""
    # The next line must not come before the fork: parent and child would both have read it.
    print("ready", flush=True)
    clock, processor = time.perf_counter_ns, time.process_time_ns
    while (line := sys.stdin.readline()) not in ("end\n", ""):
        name, count = line.split()
        call, least, fastest = calls[name], 2**63, 2**63
        call()  # brings back into the caches what the other child has driven out
        for _ in range(int(count)):
            start, started = clock(), processor()
            call()
            least, fastest = min(least, processor() - started), min(fastest, clock() - start)
        print(least, fastest, flush=True)


class Checkout:
    """A process of a checkout, seen from outside; lines go out and come back one at a time."""

    def __init__(self, folder: Path, python: str, core: int) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTMALADE_")}
        environment |= ENVIRONMENT
        command = [python, __file__, "--serve", str(core), str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment)

    def names(self) -> list[str]:
        """Names of the cases; to be asked for once, when the process has imported everything."""
        return json.loads(self._read())

    def fork(self) -> None:
        """Starts a child."""
        self._expect("fork", "ready")

    def burst(self, name: str, calls: int) -> tuple[int, int]:
        """Least processor time and wall time of some calls in the child, in nanoseconds."""
        self._write(f"{name} {calls}")
        least, fastest = map(int, self._read().split())
        return least, fastest

    def end(self) -> None:
        """Ends the child."""
        self._expect("end", "ended")

    def close(self) -> None:
        """Ends the process: it stops where its input does."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _expect(self, line: str, expected: str) -> None:
        self._write(line)
        answer = self._read().strip()
        if answer != expected:
            raise RuntimeError(answer)

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended with status {self.process.wait()}")
        return line


Times = tuple[tuple[int, int], tuple[int, int]]


def measure(pairs: list[tuple[Checkout, Checkout]], names: list[str], seconds: float) -> list[dict[str, Times]]:
    """What the bursts of old and new answered, by case, of each round; the pairs of processes take turns."""
    calls = dict.fromkeys(names, LEAST_CALLS)
    rounds: list[dict[str, Times]] = []
    start = time.monotonic()
    while len(rounds) < LONG_CASES_EVERY * len(pairs) or time.monotonic() < start + seconds:
        # Old and new come first equally often in each pair and case, at the fork and, whoever that was, at the burst.
        turn, number = divmod(len(rounds), len(pairs))
        old, new = pairs[number]
        for checkout in (old, new) if turn % 4 < 2 else (new, old):
            checkout.fork()
        found: dict[str, Times] = {}
        for index, name in enumerate(names):
            if calls[name] == LEAST_CALLS and (turn + number) % LONG_CASES_EVERY != 0:
                continue
            order = (old, new) if (index + turn) % 2 == 0 else (new, old)
            times = {checkout: checkout.burst(name, calls[name]) for checkout in order}
            found[name] = times[old], times[new]
            # For the next round, the same number for both.
            calls[name] = max(LEAST_CALLS, round(BURST_SECONDS * 1e9 / min(times.values())[0]))
        old.end()
        new.end()
        rounds.append(found)
        if len(rounds) % 20 == 0:
            print(f"{time.monotonic() - start:.0f} of {seconds:.0f} s, {len(rounds)} rounds", file=sys.stderr)
    return rounds


def interval(clusters: list[list[float]]) -> tuple[float, float]:
    """95% interval of the median of the ratios that each pair of processes gave, by resampling the pairs."""
    choose = random.Random(0)
    chosen = (itertools.chain(*choose.choices(clusters, k=len(clusters))) for _ in range(1000))
    medians = sorted(map(statistics.median, chosen))
    return medians[25], medians[-26]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the checkout to compare with")
    parser.add_argument("new", type=Path, help="folder of the checkout in question")
    parser.add_argument("--old-python", help="interpreter of the old one, by default that of its .venv")
    parser.add_argument("--new-python", help="interpreter of the new one, by default that of its .venv")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core that both work on")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="time these only, more often; for example forward-1")
    parser.add_argument("--pairs", type=int, default=10, help="processes of each checkout")
    parser.add_argument("--seconds", type=float, default=65.0, help="time to measure, besides that to start")
    parser.add_argument("--output", type=Path, help="write the figures as JSON too")
    arguments = parser.parse_args()
    folders = arguments.old.resolve(), arguments.new.resolve()
    chosen = arguments.old_python, arguments.new_python
    pythons = [python or str(folder / ".venv/bin/python") for folder, python in zip(folders, chosen, strict=True)]
    with tempfile.TemporaryDirectory() as place:
        pairs: list[Any] = []
        for number in range(arguments.pairs):
            copies = [Path(place).resolve() / f"{number}-{which}" for which in ("old", "new")]
            for folder, copy in zip(folders, copies, strict=True):
                shutil.copytree(folder / "fastmalade", copy / "fastmalade")
            both = zip(copies, pythons, strict=True)
            pairs.append(tuple(Checkout(copy, python, arguments.core) for copy, python in both))
        known = [checkout.names() for pair in pairs for checkout in pair]
        names = arguments.cases or known[0]
        if not set(names) <= set(known[0]).intersection(*known):
            parser.error(f"--cases: expected any of {', '.join(known[0])}, got {', '.join(names)}")
        rounds = measure(pairs, names, arguments.seconds)
        for pair in pairs:
            for checkout in pair:
                checkout.close()
    results: dict[str, dict[str, Any]] = {}
    print(f"{'case':<18}{'new/old':>9}   95% interval        old, us     new, us    rounds")
    for name in names:
        clusters = [[e[name] for e in rounds[first :: len(pairs)] if name in e] for first in range(len(pairs))]
        ratios = [[new[0] / old[0] for old, new in cluster] for cluster in clusters]
        (low, high), ratio = interval(ratios), statistics.median(itertools.chain(*ratios))
        old_us, new_us = (min(entry[which][1] for entry in itertools.chain(*clusters)) / 1e3 for which in (0, 1))
        count = sum(map(len, ratios))
        results[name] = {"ratio": ratio, "low": low, "high": high, "old_us": old_us, "new_us": new_us, "rounds": count}
        print(f"{name:<18}{ratio:9.4f}   {low:.4f} to {high:.4f} {old_us:11.1f} {new_us:11.1f} {count:9}")
    if arguments.output is not None:
        payload = {"old": str(folders[0]), "new": str(folders[1]), "core": arguments.core}
        arguments.output.write_text(json.dumps(payload | {"cases": results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[3]).resolve(), int(sys.argv[2]))
        raise SystemExit(0)
    raise SystemExit(main())
