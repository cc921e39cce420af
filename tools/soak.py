"""Purifies a great many images in batches of all sizes and prints the resident memory at intervals.

    python tools/soak.py --images 1000000

Sizes, shapes, models and thread counts change from call to call, as in a service; memory after the first tenth
(the caches are full then) may grow by the given bound until the end, else the exit status is 1. It is 2 where the
system does not tell the resident memory.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import torch

import fastmalade
from fastmalade.progress import progress_bar

STATM = Path("/proc/self/statm")


def resident_megabytes() -> float:
    """Resident memory of this process."""
    pages = int(STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="images in all")
    parser.add_argument("--intervals", type=int, default=20, help="lines to print")
    parser.add_argument("--side", type=int, default=28, help="height of the images; the width changes")
    parser.add_argument("--largest-batch", type=int, default=300)
    parser.add_argument("--growth", type=float, default=16.0, help="megabytes allowed after the first tenth")
    arguments = parser.parse_args()
    if not STATM.is_file():
        print("this system does not tell the resident memory of a process")
        return 2
    choose = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    models = [fastmalade.Autoencoder(1, hidden, generator=generator) for hidden in ((10, 25), (4, 9))]
    chain = fastmalade.ChainConfig(n_steps=3)
    purifiers = [fastmalade.Purifier(model.requires_grad_(False), chain) for model in models]
    most_threads = torch.get_num_threads()
    done, printed, settled = 0, 0, None
    with progress_bar() as bar:
        task = bar.add_task("purifying", total=arguments.images)
        while done < arguments.images:
            batch = min(choose.choice([1, 1, 2, 7, 16, 33, arguments.largest_batch]), arguments.images - done)
            width = choose.choice([arguments.side, arguments.side + 4])
            torch.set_num_threads(choose.randint(1, most_threads))
            choose.choice(purifiers).purify(torch.rand(batch, 1, arguments.side, width, generator=generator))
            done += batch
            bar.update(task, completed=done)
            if settled is None and done * 10 >= arguments.images:
                settled = resident_megabytes()
            if done * arguments.intervals >= (printed + 1) * arguments.images:
                printed = done * arguments.intervals // arguments.images
                print(f"{done} images: {resident_megabytes():.1f} MB resident")
    assert settled is not None
    growth = resident_megabytes() - settled
    print(f"growth after the first tenth: {growth:.1f} MB, at most {arguments.growth:.1f} allowed")
    return 0 if growth <= arguments.growth else 1


if __name__ == "__main__":
    raise SystemExit(main())
