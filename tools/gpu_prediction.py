"""What the CUDA kernels should reach, from operations, barriers and issue rates: predictions, not results.

    python tools/gpu_prediction.py

The machine is an H100 or H200: 132 multiprocessors of four schedulers, each of which starts one instruction of 32 lanes
a cycle. Instructions of a loop are those that tools/gpu_resources.py counts in the machine code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MULTIPROCESSORS, SCHEDULERS, LANES = 132, 4, 32
CLOCKS = (1.755e9, 1.98e9)  # sustained, boost
IMAGES = 8  # of a group
A100_CLOCK = 1.41e9
SPLIT_BARRIER = 1500  # cycles, assumed: stores on their way out, one trip to L2 to arrive and one to see it
# Instructions around the loops, counted by hand in the source: a tanh, a counter's four normals with their Philox.
TANH, QUAD_NOISE, QUAD_REST = 20, 210, 130


def digits_cycles(loops: dict[int, int]) -> dict[str, float]:
    """Cycles of a multiprocessor for one step of a group of eight, if a scheduler never waits.

    ``loops``: instructions of the innermost loop by its multiply-adds.
    """
    # A scheduler has two of the eight warps. conv1: a tile each, 5 rows of taps of one channel, two kinds of segment.
    conv1 = 5 * (loops[340] + loops[330]) + 2 * 70 * TANH
    # conv2: a tile each, 10 channels of 5 rows.
    conv2 = 2 * 50 * loops[224] + 2 * 49 * TANH
    # deconv1: phases of 5x5 and 4x4 taps, or of 5x4 and 4x5, which is the more even; 25 channels.
    deconv1 = max(25 * (5 * loops[290] + 4 * loops[240]), 25 * (5 * loops[240] + 4 * loops[290])) + 2 * 77 * TANH
    quads = IMAGES * 196 / LANES / SCHEDULERS
    tail = quads * (4 * TANH + QUAD_NOISE + QUAD_REST)
    return {"conv1": conv1, "conv2": conv2, "deconv1, deconv2": deconv1, "conv3, update, noise": tail}


def read_loops() -> dict[int, int]:
    """Of the digits form on sm_90; the longer one where two loops have as many multiply-adds."""
    table = json.loads((ROOT / "benchmarks" / "results" / "gpu-resources.json").read_text(encoding="utf-8"))
    row = next(r for r in table["rows"] if r["kernel"].startswith("chain digits x8") and r["arch"] == "sm_90")
    loops: dict[int, int] = {}
    for loop in row["loops"]:
        loops[loop["ffma"]] = max(loops.get(loop["ffma"], 0), loop["instructions"])
    return loops


def main() -> int:
    """Prints the floors and the expectation."""
    sys.path.insert(0, str(ROOT))
    from fastmalade.bench.flops import flops_per_image

    multiply_adds = flops_per_image(1, 28, 28, 10, 25, 10) / 2
    print("N = 10, 1x28x28, hidden channels 10 and 25; not yet measured on a GPU")
    for clock in CLOCKS:
        rate = MULTIPROCESSORS * SCHEDULERS * LANES * clock
        floor = rate / multiply_adds / 1e6
        print(f"floor by fp32 multiply-adds alone at {clock / 1e9} GHz: {floor:.2f} million images/s")
    cycles = digits_cycles(read_loops())
    total = sum(cycles.values())
    for stage, count in cycles.items():
        print(f"  {stage}: {count:.0f} cycles a step of {IMAGES} images, {count / total:.0%}")
    for clock in CLOCKS:
        bound = MULTIPROCESSORS * clock * IMAGES / (10 * total) / 1e6
        print(f"issue-bound at {clock / 1e9} GHz: {bound:.2f} million images/s, {0.85 * bound:.2f} with 15% stalls")
    # Latency form, a cluster of eight: a scheduler has at most two warps, and the chain of dependent multiply-adds of
    # an output bounds a layer from below.
    chain = 4 * (25 + 250 + 625 + 10 + 25)
    for clock in CLOCKS[:1]:
        barriers = 5 * 500
        alone, whole = (10 * count / clock * 1e6 for count in (chain, chain + barriers))
        print(f"latency: {alone:.0f} us of dependent multiply-adds, {whole:.0f} us with 5 barriers of 500 cycles")
    # Without clusters: five blocks of an A100 that share an image through L2, against a group of four in one block,
    # which takes half the cycles of eight.
    waits = (10 * 5 + 1) * SPLIT_BARRIER / A100_CLOCK * 1e6
    alone, four = (10 * count / A100_CLOCK * 1e6 for count in (chain, total / 2 / 0.85))
    print(f"split form, A100: {alone:.0f} us of dependent multiply-adds, {waits:.0f} us of 51 barriers")
    print(f"digits form, A100: {four:.0f} us for a group of four, with 15% stalls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
