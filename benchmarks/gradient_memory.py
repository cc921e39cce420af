"""Peak memory of one gradient through the chain: eager autograd against the native kernels, each in a fresh process.

    python benchmarks/gradient_memory.py --output benchmarks/results/gradient-memory.json

Prints how far the process's resident memory rises above what it was before the call, with everything loaded and the
libraries warmed up by a gradient of one image. The operating system measures it (VmHWM of /proc/self/status, reset
before the call): Linux with glibc only. Forward pass, backward pass and the result are included.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from fastmalade.bench import machine
from fastmalade.bench.contenders.eager import Eager
from fastmalade.bench.contenders.native import Native
from fastmalade.bench.task import make_images, make_task
from fastmalade.bench.verify import make_cotangent
from fastmalade.files import write_json

CONTENDERS = {"eager": Eager, "native": Native}


def peak_bytes() -> int:
    """Most memory that has been resident since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected VmHWM in /proc/self/status, got none")


def additional_bytes(name: str, batch: int, steps: int) -> int:
    """Rise of the peak during one gradient, in this process."""
    torch.set_num_threads(1)
    contender = CONTENDERS[name]()

    def prepared(images: int) -> Callable[[], object]:
        task = make_task((1, 28, 28), images, steps)
        pixels = make_images(task)
        chain = contender.prepare_gradient(task, contender.forms[0], make_cotangent(task, pixels))
        return lambda: chain(pixels)

    prepared(1)()
    run = prepared(batch)
    # What preparation has freed goes back to the system, or the call would be served from it and seem to need nothing.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_bytes()
    run()
    return peak_bytes() - before


def main(arguments: list[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "BATCH", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        name, batch, steps = options.one
        print(additional_bytes(name, int(batch), int(steps)))
        return 0
    rows = []
    print(f"{'N':>4} {'batch':>6} {'eager, MB':>10} {'native, MB':>11} {'ratio':>6}")
    for steps in options.steps:
        for batch in options.batches:
            found = {}
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--one", name, str(batch), str(steps)]
                found[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ratio = found["eager"] / max(found["native"], 1)
            print(f"{steps:>4} {batch:>6} {found['eager'] / 1e6:>10.1f} {found['native'] / 1e6:>11.1f} {ratio:>6.1f}")
            rows.append({"steps": steps, "batch": batch, "additional_bytes": found})
    if options.output is not None:
        result = {"rows": rows, "machine": machine.describe(), "commit": machine.commit()}
        write_json(options.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
