"""Finds tile sizes of the Triton kernels for the GPU of this machine and keeps them in the user's cache.

    python tools/tune_triton.py [--batch 4096] [--output FILE]

For each stage in turn the fastest of a few tiles is kept, by the time of a chain and its gradient. Every process that
starts afterwards reads the file; one written with --output is read where FASTMALADE_TRITON_CONFIG names it. Only
block_m, num_warps and num_stages are tried: in float32 none of them changes a bit of a result
(fastmalade/backends/triton/tiles.py). Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from fastmalade.backends.triton import tiles as triton_tiles
from fastmalade.backends.triton.tiles import DEFAULTS, Tile
from fastmalade.files import replacing
from fastmalade.progress import progress_bar

PRODUCTS = [Tile(*values) for values in itertools.product((32, 64, 128), (2, 4, 8), (1, 2, 3))]
OTHERS = [Tile(m, warps, 1) for m, warps in itertools.product((32, 64, 128, 256), (1, 2, 4, 8)) if m >= 32 * warps]
GAIN = 0.99
"""A tile replaces another one only if it takes less than this share of its time: smaller differences are noise."""


def candidates(stage: str) -> list[Tile]:
    """Tiles to try for a stage, the default first."""
    is_product = stage.startswith(("conv", "deconv"))
    return [DEFAULTS[stage], *(t for t in (PRODUCTS if is_product else OTHERS) if t != DEFAULTS[stage])]


def tune(measure: Callable[[dict[str, Tile]], float], stages: list[str]) -> dict[str, Tile]:
    """The tiles found by trying each stage's candidates in turn with what was found for the others.

    ``measure`` gives the time, in any unit, of a run with the given tiles.
    """
    found = dict(DEFAULTS)
    best = measure(found)
    with progress_bar() as bar:
        task = bar.add_task("tuning", total=sum(len(candidates(stage)) - 1 for stage in stages))
        for stage in stages:
            for tile in candidates(stage)[1:]:
                tried = {**found, stage: tile}
                seconds = measure(tried)
                if seconds < GAIN * best:
                    found, best = tried, seconds
                bar.advance(task)
    return found


def write(path: Path, device_name: str, tiles: dict[str, Tile]) -> None:
    """Puts the tiles that are not the defaults under the device's name; other devices keep theirs."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    table[device_name] = {stage: dataclasses.asdict(t) for stage, t in tiles.items() if t != DEFAULTS[stage]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _in_use(tiles: dict[str, Tile]) -> Iterator[None]:
    with mock.patch.object(triton_tiles, "tiles", return_value=tiles):
        yield


def _measure_on_gpu(batch: int) -> Callable[[dict[str, Tile]], float]:
    import triton.testing

    from fastmalade import Autoencoder
    from fastmalade.backends.triton import calls as backend
    from fastmalade.backends.values import NoiseSource, Steps

    model = Autoencoder(generator=torch.Generator().manual_seed(0)).cuda().requires_grad_(False)
    x = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0)).cuda()
    weights, ids = model.weights(), torch.arange(batch, device="cuda")
    seed = torch.ones(1, dtype=torch.int64, device="cuda")
    steps = Steps((0.2,), (0.05,), (0.0,), (1.0,))

    def run() -> None:
        # One step: the stages of all steps are the same.
        backend.chain_gradient(x, x, weights, steps, NoiseSource(seed, ids))

    def measure(tiles: dict[str, Tile]) -> float:
        with _in_use(tiles):
            return float(triton.testing.do_bench(run, return_mode="median"))

    return measure


def main() -> int:
    """Tunes, writes, and says what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096, help="images per run")
    parser.add_argument("--output", type=Path, help="file to write instead of the one in the user's cache")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: expected a CUDA device, got none that PyTorch sees", file=sys.stderr)
        return 2
    # A Table 8 chain does not launch the update of user modules, which is bound by memory whatever its tile.
    stages = [stage for stage in DEFAULTS if stage != "update"]
    found = tune(_measure_on_gpu(arguments.batch), stages)
    path = arguments.output or triton_tiles.cache_file()
    write(path, torch.cuda.get_device_name(), found)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
