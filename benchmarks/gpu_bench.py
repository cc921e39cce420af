"""The CUDA and Triton chains and their gradients against torch on a GPU: cases, contenders, timing, ceilings.

Run by tools/gpu_check.py; ``python benchmarks/gpu_bench.py FILE --seconds 240`` runs it alone. Cases that are left when
time runs out are reported as not run. All contenders draw noise inside the timed region, torch by its own generator.
Before a call is timed, its result is compared with a chain in float64; one that differs is a failure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 16, 256, 4096, 65536)
STEPS = (10, 25, 50)
KINDS = ("forward", "gradient")
# With their precisions.
CUDA = {"cuda": "fp32", "cuda tf32x3": "tf32x3", "cuda tf32": "tf32"}
TRITON = {"triton": "fp32", "triton tf32x3": "tf32x3", "triton tf32": "tf32"}
CONTENDERS = (*CUDA, *TRITON, "eager", "torch graphs", "torch graphs tf32", "torch.compile")
SEED, STEP_SIZE, NOISE_SCALE = 1, 0.1, 0.05
CHECKED_IMAGES = 8  # the first so many of a batch
# The largest difference from float64 in parts of the largest value: operands of 11 bits differ by 2^-12 each, and the
# differences of all layers and steps add up; a wrong tap or a wrong noise word is far beyond either.
TOLERANCE, TOLERANCE_TF32 = 1e-4, 3e-2


@dataclass(frozen=True)
class Case:
    """One measurement: B images, N steps, forward or forward with gradient."""

    batch: int
    n_steps: int
    kind: str
    contender: str


def cases() -> Iterator[Case]:
    """The CUDA figures first, then all others by length: where time runs out, long chains are missing."""
    rest = CONTENDERS[len(CUDA) :]
    order = [(contender, n) for contender in CUDA for n in STEPS] + [
        (contender, n) for n in STEPS for contender in rest
    ]
    for contender, n_steps in order:
        for kind in KINDS:
            for batch in BATCHES:
                yield Case(batch, n_steps, kind, contender)


def seconds_per_call(
    call: Callable[[], object], synchronize: Callable[[], object], clock: Callable[[], float] = time.perf_counter,
    *, least_seconds: float = 0.2, least_rounds: int = 5, most_seconds: float = 5.0,
) -> float:  # fmt: skip
    """Median over rounds, each of as many calls as take about a tenth of ``least_seconds``.

    One warm-up call is not counted. ``most_seconds`` ends the rounds of slow calls early, after one at least.
    """
    call()
    synchronize()
    start = clock()
    call()
    synchronize()
    once = max(clock() - start, 1e-7)
    calls = max(1, int(least_seconds / 10 / once))
    rounds: list[float] = []
    begin = clock()
    while not rounds or (
        clock() - begin < most_seconds and (len(rounds) < least_rounds or clock() - begin < least_seconds)
    ):
        start = clock()
        for _ in range(calls):
            call()
        synchronize()
        rounds.append((clock() - start) / calls)
    return statistics.median(rounds)


def measure(
    wanted: Iterator[Case], prepare: Callable[[Case], Callable[[], object]], synchronize: Callable[[], object],
    deadline: float, clock: Callable[[], float] = time.perf_counter,
    report: Callable[[dict[str, Any]], object] = lambda row: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for every case: seconds and images per second, or why there are none."""
    rows = []
    for case in wanted:
        row: dict[str, Any] = asdict(case)
        if clock() >= deadline:
            row["status"] = "not run: out of time"
        else:
            try:
                seconds = seconds_per_call(prepare(case), synchronize, clock)
            except Exception as error:  # a peer that fails is a result, and the other cases still count
                row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            else:
                row |= {"status": "ok", "seconds": seconds, "images_per_second": case.batch / seconds}
        rows.append(row)
        report(row)
    return rows


def with_fractions(rows: list[dict[str, Any]], fma_per_second: float | None) -> list[dict[str, Any]]:
    """Adds the share of the measured fp32 rate that the chain's multiply-adds take, and the ratio to "cuda"."""
    from fastmalade.bench.flops import flops_per_image

    own = {(r["batch"], r["n_steps"], r["kind"]): r["seconds"] for r in rows
           if r["contender"] == "cuda" and r["status"] == "ok"}  # fmt: skip
    for row in rows:
        if row["status"] != "ok":
            continue
        if fma_per_second and row["kind"] == "forward":
            multiply_adds = flops_per_image(1, 28, 28, 10, 25, row["n_steps"]) / 2
            row["part_of_fma_rate"] = multiply_adds * row["images_per_second"] / fma_per_second
        ours = own.get((row["batch"], row["n_steps"], row["kind"]))
        if ours is not None:
            row["times_slower_than_cuda"] = row["seconds"] / ours
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: microseconds per call, one row for each batch, length and kind."""
    lines = [f"| B | N | kind | {' | '.join(CONTENDERS)} |", "|" + "---|" * (3 + len(CONTENDERS))]
    found = {(r["batch"], r["n_steps"], r["kind"], r["contender"]): r for r in rows}
    for batch in BATCHES:
        for n_steps in STEPS:
            for kind in KINDS:
                cells = []
                for contender in CONTENDERS:
                    row = found.get((batch, n_steps, kind, contender), {"status": "not run"})
                    cells.append(
                        f"{row['seconds'] * 1e6:.1f}" if row["status"] == "ok" else row["status"].split(":")[0]
                    )
                lines.append(f"| {batch} | {n_steps} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ceilings() -> dict[str, float]:
    """Bytes per second of a copy and fp32 multiply-adds per second of a matrix product, on this GPU."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = seconds_per_call(lambda: target.copy_(source), torch.cuda.synchronize)
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    product = seconds_per_call(lambda: a @ b, torch.cuda.synchronize)
    return {"copy_bytes_per_second": 2 * source.numel() * 4 / copy, "fma_per_second": 8192**3 / product}


def contender(case: Case, device: str = "cuda") -> Callable[[], object]:
    """A call without arguments that does the work of a case, verified.

    Raises:
        WrongResultError: it computes something else.
    """
    import torch

    from fastmalade import Purifier

    purifier = Purifier.from_pretrained("malade-mnist")
    weights = [w.detach().to(device) for w in purifier.autoencoder.weights()]
    x = torch.rand(case.batch, 1, 28, 28, device=device)
    cotangent = torch.randn_like(x)
    if case.contender in CUDA or case.contender in TRITON:
        work = _native(case, x, cotangent, weights)
        verify(work(), case, x, cotangent, weights, NOISE_SCALE)
        return work
    # Torch's convolutions take TF32 operands unless told otherwise.
    torch.backends.cudnn.allow_tf32 = case.contender.endswith(" tf32")
    noise_scale = torch.zeros((), device=device)
    work = _torch(case, x, cotangent, weights, noise_scale)
    # Torch's generator draws other noise, so its chain is verified without noise. The scale lies in device memory, so
    # that the same program, and the same graph, is verified and timed.
    verify(work(), case, x, cotangent, weights, 0.0)
    noise_scale.fill_(NOISE_SCALE)
    return work


def _native(case: Case, x: Tensor, cotangent: Tensor, weights: list[Tensor]) -> Callable[[], Tensor]:
    import torch

    from fastmalade.backends.cuda import calls as cuda
    from fastmalade.backends.triton import calls as triton
    from fastmalade.backends.values import NoiseSource, Steps

    backend: Any = cuda if case.contender in CUDA else triton
    n, infinity = case.n_steps, float("inf")
    steps = Steps((STEP_SIZE,) * n, (NOISE_SCALE,) * n, (-infinity,) * n, (infinity,) * n)
    # A chain of four launches a step runs as a graph, as purify runs it, and a graph reads the seed on the device.
    seed = torch.full((1,), SEED, dtype=torch.int64, device=x.device) if case.contender in TRITON else SEED
    noise, precision = NoiseSource(seed), (CUDA | TRITON)[case.contender]

    def work() -> Tensor:
        if case.kind == "forward":
            return backend.langevin_chain(x, weights, steps, noise, precision=precision)
        return backend.chain_gradient(cotangent, x, weights, steps, noise, precision=precision)

    return work if case.contender in CUDA else _captured(work)


def _torch(
    case: Case, x: Tensor, cotangent: Tensor, weights: list[Tensor], noise_scale: Tensor
) -> Callable[[], Tensor]:
    import torch

    from fastmalade import reference

    def step(state: Tensor) -> Tensor:
        r = reference.autoencoder_forward(state, weights)
        return state + STEP_SIZE * (r - state) + noise_scale * torch.randn_like(state)

    evaluate = step
    if case.contender == "torch.compile":
        # Every case compiles the same code anew, and after so many results the compiler gives up and runs it eagerly.
        torch.compiler.reset()
        evaluate = torch.compile(step, mode="max-autotune-no-cudagraphs", dynamic=False)

    def chain(state: Tensor) -> Tensor:
        for _ in range(case.n_steps):
            state = evaluate(state)
        return state

    leaf = x.detach().requires_grad_(case.kind == "gradient")

    def work() -> Tensor:
        if case.kind == "forward":
            with torch.no_grad():
                return chain(leaf)
        return torch.autograd.grad(chain(leaf), leaf, cotangent)[0]

    return work if case.contender == "eager" else _captured(work)


class WrongResultError(RuntimeError):
    """A contender does not compute the chain, or its gradient."""


def verify(result: Tensor, case: Case, x: Tensor, cotangent: Tensor, weights: list[Tensor], noise_scale: float) -> None:
    """Compares the first images of a result (B, C, H, W) with the chain, or its gradient, in float64.

    Raises:
        WrongResultError: they differ by more than the tolerance of the contender's precision.
    """
    import torch

    from fastmalade import reference

    wide = [w.double() for w in weights]
    state = x[:CHECKED_IMAGES].double().requires_grad_(case.kind == "gradient")
    settings = [STEP_SIZE] * case.n_steps, [noise_scale] * case.n_steps
    expected = reference.langevin_chain(state, lambda s: reference.autoencoder_forward(s, wide), *settings, seed=SEED)
    if case.kind == "gradient":
        (expected,) = torch.autograd.grad(expected, state, cotangent[:CHECKED_IMAGES].double())
    difference = float((result[:CHECKED_IMAGES].double() - expected).abs().max() / expected.abs().max())
    tolerance = TOLERANCE_TF32 if case.contender.endswith(" tf32") else TOLERANCE
    if not difference <= tolerance:
        raise WrongResultError(
            f"expected the chain in float64 within {tolerance:g}, got a difference of {difference:g}"
        )


def _captured(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    # Every contender of torch's but "eager" replays a graph, so torch.compile has no use for graphs of its own.
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def main() -> int:
    """Writes ceilings and rows after every case, so that an interruption keeps what there is.

    Exit status 1 where a case of our own kernels failed, or none of them ran.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from fastmalade.files import replacing

    deadline = time.perf_counter() + arguments.seconds
    limits = ceilings()
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        with replacing(arguments.output) as temporary:
            text = json.dumps({"ceilings": limits, "rows": with_fractions(rows, limits["fma_per_second"])}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")

    measure(cases(), contender, torch.cuda.synchronize, deadline, report=keep)
    print(as_table(rows))
    return exit_status(rows)


def exit_status(rows: list[dict[str, Any]]) -> int:
    """0 where our own kernels were timed and none of them failed, else 1; of a peer a failure is a result."""
    own = [row["status"] for row in rows if row["contender"] in CUDA]
    return 0 if "ok" in own and not any(status.startswith("failed") for status in own) else 1


if __name__ == "__main__":
    raise SystemExit(main())
