"""Predicts the speed of the CUDA kernels from operations, barriers and issue rates. Nothing here is measured.

    python tools/gpu_prediction.py

The machine is an H100 or H200: 132 multiprocessors of four schedulers, each of which starts one instruction for 32
lanes a cycle. The instructions of a loop are counted in the machine code by tools/gpu_resources.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MULTIPROCESSORS, SCHEDULERS, LANES = 132, 4, 32
CLOCKS = (1.755e9, 1.98e9)  # sustained, boost
IMAGES = 8  # of a group
# Instructions around the loops, counted by hand in the source: a tanh, a counter's four normals with their Philox.
TANH, QUAD_NOISE, QUAD_REST = 20, 210, 130
# Tensor cores: multiply-adds of TF32 a cycle and multiprocessor, and of one m16n8k8. The part of that rate that
# mma.sync reaches on sm_90 is an assumption.
TENSOR_RATE, MMA, MMA_SYNC = 1024, 16 * 8 * 8, 0.62
WARPS, POSITIONS = 8, 7  # of a block; in a row and a column of the middle layers


def conv1_and_tail_cycles(loops: dict[int, int]) -> tuple[float, float]:
    """:func:`digits_cycles` of the stages that all precisions share."""
    # A scheduler has two of the eight warps. conv1: a tile each, 5 rows of taps of one channel, two kinds of segment.
    conv1 = 5 * (loops[340] + loops[330]) + 2 * 70 * TANH
    quads = IMAGES * 196 / LANES / SCHEDULERS
    return conv1, quads * (4 * TANH + QUAD_NOISE + QUAD_REST)


def digits_cycles(loops: dict[int, int]) -> dict[str, float]:
    """Cycles of a multiprocessor for one step of a group of eight, if no scheduler ever waits.

    ``loops``: instructions of the innermost loop by its multiply-adds.
    """
    conv1, tail = conv1_and_tail_cycles(loops)
    # conv2: a tile each, 10 channels of 5 rows.
    conv2 = 2 * 50 * loops[224] + 2 * 49 * TANH
    # deconv1: phases of 5x5 and 4x4 taps, or of 5x4 and 4x5, which is the more even; 25 channels.
    deconv1 = max(25 * (5 * loops[290] + 4 * loops[240]), 25 * (5 * loops[240] + 4 * loops[290])) + 2 * 77 * TANH
    return {"conv1": conv1, "conv2": conv2, "deconv1, deconv2": deconv1, "conv3, update, noise": tail}


class Products:
    """The mma of a layer: its rows of positions, shared out to warps in segments, their taps and blocks of K."""

    def __init__(self, stride: int, rows: int, groups: int, loose: int, segments: int) -> None:
        self.stride, self.rows, self.tiles, self.groups, self.loose = stride, rows, -(-rows // 16), groups, loose
        self.bounds = [s * POSITIONS // segments for s in range(segments + 1)]

    def taps(self, position: int) -> int:
        """Taps of 5 along one side that lie inside the input."""
        return sum(0 <= self.stride * position + tap - 2 < self.stride * POSITIONS for tap in range(5))

    def of_segment(self, row: int, segment: int) -> tuple[int, int]:
        """Products of the whole eights of channels, and of the channels left over."""
        positions = range(self.bounds[segment], self.bounds[segment + 1])
        whole = self.groups * self.taps(row) * sum(map(self.taps, positions))
        return whole * self.tiles, self.loose * len(positions) * self.tiles

    def all(self) -> int:
        """Products of one step of a group of eight images."""
        return sum(sum(self.of_segment(row, s)) for row in range(POSITIONS) for s in range(len(self.bounds) - 1))

    def bytes_of_one(self) -> float:
        """Bytes read from shared memory for an mma of a whole row: words of 32 lanes, and weights of five taps."""
        activations = self.stride * POSITIONS * 2 * LANES * 4
        return (activations + 5 * self.rows * 8 * 4) / (sum(map(self.taps, range(POSITIONS))) * self.tiles)

    def slowest_scheduler(self, cycles: dict[int, tuple[float, float]]) -> float:
        """Cycles of the busiest of the four. cycles: of an mma of either kind, by segment."""
        load = [0.0] * SCHEDULERS
        for slot in range((len(self.bounds) - 1) * POSITIONS):
            segment = slot // POSITIONS
            whole, loose = self.of_segment((slot + 1) % POSITIONS, segment)
            load[slot % WARPS % SCHEDULERS] += whole * cycles[segment][0] + loose * cycles[segment][1]
        return max(load)


def products(precision: str) -> tuple[Products, Products]:
    """conv2 and deconv1 (kernels/cuda/tensor_layout.cuh): 25 rows of M padded to 32, four phases of 10."""
    return Products(2, 32, 1, 7, 1), Products(1, 40, 3, 4, 3 if precision == "tf32x3" else 1)


def tensor_cycles(loops: list[dict[str, int]], precision: str, rate: float) -> dict[str, float]:
    """:func:`digits_cycles` of a form on tensor cores. rate: multiply-adds a cycle and multiprocessor.

    ``loops``: the innermost ones in the order of the code, conv1's two first, then for each segment of a layer that of
    eight channels and that of the channels left over.
    """
    conv1, tail = conv1_and_tail_cycles({loop["ffma"]: loop["instructions"] for loop in loops})
    found = [loop for loop in loops if loop["tensor"]]
    parts = 3 if precision == "tf32x3" else 1
    busy = MMA * SCHEDULERS / rate
    # A product takes its time on the tensor cores, or the instructions around it theirs.
    each = [parts * max(busy, loop["instructions"] / loop["tensor"]) for loop in found]
    # Whatever their order in the code: a later segment of a row has more products.
    order = sorted(range(2, len(found), 2), key=lambda n: found[n]["tensor"])
    pairs = [(each[n], each[n + 1]) for n in order]
    conv2, deconv1 = products(precision)
    return {
        "conv1": conv1,
        "conv2": conv2.slowest_scheduler({0: (each[0], each[1])}) + 2 * 56 * TANH,
        "deconv1, deconv2": deconv1.slowest_scheduler(dict(enumerate(pairs))) + 2 * 77 * TANH,
        "conv3, update, noise": tail,
    }


def read_loops(kernel: str) -> list[dict[str, int]]:
    """The innermost loops of a chain kernel on sm_90."""
    table = json.loads((ROOT / "benchmarks" / "results" / "gpu-resources.json").read_text(encoding="utf-8"))
    row = next(r for r in table["rows"] if r["kernel"].startswith(kernel) and r["arch"] == "sm_90")
    return list(row["loops"])


def longest(loops: list[dict[str, int]]) -> dict[int, int]:
    """Instructions of a loop by its multiply-adds; of the longer loop where two have the same number of those."""
    found: dict[int, int] = {}
    for loop in loops:
        found[loop["ffma"]] = max(found.get(loop["ffma"], 0), loop["instructions"])
    return found


def print_tensor_forms(useful: dict[str, int]) -> None:
    """Floors and expectations of the reduced precisions. useful: multiply-adds of a layer on one image."""
    for precision in ("tf32", "tf32x3"):
        print(f"{precision}: conv2 and deconv1 on tensor cores")
        parts = 3 if precision == "tf32x3" else 1
        for name, layer in zip(("conv2", "deconv1"), products(precision), strict=True):
            padded = layer.all() * MMA
            unevenness = layer.slowest_scheduler(dict.fromkeys(range(3), (1.0, 1.0))) * SCHEDULERS / layer.all()
            print(f"  {name}: {useful[name]} multiply-adds an image, {padded / IMAGES:.0f} with padding "
                  f"({useful[name] * IMAGES / padded:.0%} useful); {parts * layer.all()} mma a group, "
                  f"{parts * padded / TENSOR_RATE:.0f} cycles of a multiprocessor at the full rate; "
                  f"{layer.bytes_of_one() / parts:.0f} bytes of shared memory an mma; "
                  f"the busiest scheduler has {unevenness:.2f} of the mean")  # fmt: skip
        loops = read_loops(f"chain tensor {precision}, weights resident")
        for rate in (TENSOR_RATE, TENSOR_RATE * MMA_SYNC):
            cycles = tensor_cycles(loops, precision, rate)
            total = sum(cycles.values())
            print(f"  at {rate:.0f} multiply-adds a cycle: "
                  + ", ".join(f"{stage}: {count:.0f} cycles" for stage, count in cycles.items()))  # fmt: skip
            for clock in CLOCKS:
                bound = MULTIPROCESSORS * clock * IMAGES / (10 * total) / 1e6
                print(f"  bound at {clock / 1e9} GHz: {bound:.2f} million images/s, {0.85 * bound:.2f} with 15% stalls")


def main() -> int:
    """Prints the floors and the expectation."""
    sys.path.insert(0, str(ROOT))
    from fastmalade.bench.flops import flops_per_image, stage_flops

    multiply_adds = flops_per_image(1, 28, 28, 10, 25, 10) / 2
    print("N = 10, 1x28x28, hidden channels 10 and 25; not yet measured on a GPU")
    for clock in CLOCKS:
        rate = MULTIPROCESSORS * SCHEDULERS * LANES * clock
        floor = rate / multiply_adds / 1e6
        print(f"floor by fp32 multiply-adds alone at {clock / 1e9} GHz: {floor:.2f} million images/s")
    cycles = digits_cycles(longest(read_loops("chain digits x8")))
    total = sum(cycles.values())
    for stage, count in cycles.items():
        print(f"  {stage}: {count:.0f} cycles a step of {IMAGES} images, {count / total:.0%}")
    for clock in CLOCKS:
        bound = MULTIPROCESSORS * clock * IMAGES / (10 * total) / 1e6
        print(f"issue-bound at {clock / 1e9} GHz: {bound:.2f} million images/s, {0.85 * bound:.2f} with 15% stalls")
    print_tensor_forms({stage: flops // 2 for stage, flops in stage_flops(1, 28, 28, 10, 25).items()})
    # One image in a cluster of eight: a scheduler has at most two warps, and the dependent multiply-adds of an output
    # bound a layer from below.
    chain = 4 * (25 + 250 + 625 + 10 + 25)
    for clock in CLOCKS[:1]:
        barriers = 5 * 500
        alone, whole = (10 * count / clock * 1e6 for count in (chain, chain + barriers))
        group = 10 * total / 0.85 / clock * 1e6
        print(f"cluster, one image: {alone:.0f} us of dependent multiply-adds, {whole:.0f} us with 5 barriers of 500 "
              f"cycles a step; {group:.0f} us for a group of eight in the form digits, with 15% stalls")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
