"""The logic of the benchmark on a GPU, with an invented clock and backends of torch's own arithmetic."""

from __future__ import annotations

import functools

import gpu_bench
import pytest
import torch

from fastmalade import reference


class Clock:
    """A clock that a call moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_all_cases_are_there() -> None:
    found = list(gpu_bench.cases())
    assert len(found) == len(set(found)) == 5 * 3 * 2 * len(gpu_bench.CONTENDERS)
    assert {case.contender for case in found[:30]} == {"cuda"}
    own = 30 * len(gpu_bench.CUDA)
    assert {case.contender for case in found[:own]} == set(gpu_bench.CUDA)
    peers = 10 * (len(gpu_bench.CONTENDERS) - len(gpu_bench.CUDA))
    assert [{c.n_steps for c in found[n : n + peers]} for n in range(own, len(found), peers)] == [{10}, {25}, {50}]


class StandIn:
    """A backend of torch's own arithmetic that takes what the backends on a GPU take."""

    def __init__(self, error: float = 0.0) -> None:
        self.error, self.asked = error, []

    def langevin_chain(self, x, weights, steps, noise, *, precision="fp32"):
        self.asked.append((precision, isinstance(noise.seed, torch.Tensor)))
        r = functools.partial(reference.autoencoder_forward, weights=weights)
        return reference.langevin_chain(x, r, steps.step_sizes, steps.noise_scales, seed=noise.seed) + self.error

    def chain_gradient(self, cotangent, x, weights, steps, noise, **options):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.langevin_chain(leaf, weights, steps, noise, **options), leaf, cotangent)[0]


@pytest.fixture
def backends_on_the_cpu(monkeypatch) -> dict[str, StandIn]:
    found = {"cuda": StandIn(), "triton": StandIn()}
    for name, module in found.items():
        for function in ("langevin_chain", "chain_gradient"):
            monkeypatch.setattr(f"fastmalade.backends.{name}.calls.{function}", getattr(module, function))
    monkeypatch.setattr(gpu_bench, "_captured", lambda work: work)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    return found


@pytest.mark.parametrize("name", gpu_bench.CONTENDERS)
def test_every_contender_computes_the_chain_and_its_gradient(backends_on_the_cpu, name: str) -> None:
    for kind in gpu_bench.KINDS:
        work = gpu_bench.contender(gpu_bench.Case(2, 2, kind, name), "cpu")
        first, second = work(), work()
        assert first.shape == (2, 1, 28, 28)
        # Torch's chains draw noise anew; the gradient depends on it through the states.
        assert torch.equal(first, second) == (name.split()[0] in ("cuda", "triton"))
    asked = {name: set(backend.asked) for name, backend in backends_on_the_cpu.items() if backend.asked}
    expected = {label: {"cuda": {(precision, False)}} for label, precision in gpu_bench.CUDA.items()}
    expected |= {label: {"triton": {(precision, True)}} for label, precision in gpu_bench.TRITON.items()}
    assert asked == expected.get(name, {})
    if name not in expected:
        assert torch.backends.cudnn.allow_tf32 == (name == "torch graphs tf32")


def test_a_contender_that_computes_something_else_is_not_timed(backends_on_the_cpu) -> None:
    for backend in backends_on_the_cpu.values():
        backend.error = 1e-3
    names = ("cuda", "cuda tf32x3", "triton", "triton tf32x3", "cuda tf32", "triton tf32")
    wanted = [gpu_bench.Case(2, 1, "forward", name) for name in names]
    times = iter(range(10**6))
    # Ten seconds from one look at the clock to the next: one round is timed.
    rows = gpu_bench.measure(
        iter(wanted), lambda case: gpu_bench.contender(case, "cpu"), lambda: None, 1e9, lambda: next(times) * 10.0
    )
    wrong = "failed: WrongResultError: expected the chain in float64 within 0.0001, got a difference of"
    assert [row["status"][: len(wrong)] for row in rows] == [wrong] * 4 + ["ok"] * 2


def test_timing_takes_the_median_after_a_warm_up() -> None:
    clock, times = Clock(), iter([50.0, 1.0] + [1.0, 9.0, 2.0, 3.0, 2.0] + [2.0] * 100)

    def call() -> None:
        clock.now += next(times)

    assert gpu_bench.seconds_per_call(call, lambda: None, clock, most_seconds=16.5) == 2.0


def test_a_failing_peer_and_the_end_of_time_are_rows_too() -> None:
    clock = Clock()

    def prepare(case):
        if case.contender == "eager":
            raise RuntimeError("out of memory\nand more")

        def call() -> None:
            clock.now += 0.25

        return call

    wanted = [gpu_bench.Case(4, 10, "forward", c) for c in ("cuda", "eager", "cuda", "torch graphs")]
    rows = gpu_bench.measure(iter(wanted), prepare, lambda: None, clock.now + 3.0, clock)
    assert [r["status"] for r in rows] == ["ok", "failed: RuntimeError: out of memory", "ok", "not run: out of time"]
    assert rows[0]["images_per_second"] == pytest.approx(16.0)
    # About 1.01 million multiply-adds for a step and image (docs/performance.md), 16 images of 10 steps a second.
    gpu_bench.with_fractions(rows, fma_per_second=1.01e6 * 10 * 160.0)
    assert rows[0]["part_of_fma_rate"] == pytest.approx(0.1, rel=0.01)
    assert rows[0]["times_slower_than_cuda"] == pytest.approx(1.0)
