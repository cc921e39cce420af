"""The logic of gpu-check, of its benchmark and of the resource table, with invented devices, clocks and reports."""

from __future__ import annotations

import functools
import json

import gpu_bench
import gpu_check
import gpu_prediction
import gpu_resources
import pytest
import torch

from fastmalade import reference


class Clock:
    """A clock that a call moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_go_on_past_failures_and_say_what_happened() -> None:
    clock, said = Clock(), []
    outcomes = {"a": gpu_check.Outcome(0, "fine"), "b": gpu_check.Outcome(3, "x" * 9000 + "the end"),
                "c": gpu_check.Outcome(None, "half")}  # fmt: skip

    def run(command, limit):
        clock.now += limit / 2
        if command[0] == "d":
            raise FileNotFoundError("d")
        return outcomes[command[0]]

    wanted = [gpu_check.Part(name, (name,), 10, needs) for name, needs in
              (("a", None), ("b", "tool"), ("c", None), ("d", None), ("e", "missing"))]  # fmt: skip
    records = gpu_check.run_parts(wanted, run, {"tool": "/bin/tool"}.get, clock, said.append)
    assert [r["status"] for r in records] == ["ok", "failed", "timeout", "failed", "skipped"]
    assert [r["seconds"] for r in records] == [5.0, 5.0, 5.0, 5.0, 0.0]
    assert records[1]["detail"].endswith("the end")
    assert len(records[1]["detail"]) == 4000
    assert "missing" in records[4]["detail"]
    assert any("b: failed after 5 s" in line for line in said)


def test_limits_stay_under_ten_minutes() -> None:
    assert sum(part.limit for part in gpu_check.parts("python")) < 600


def test_a_command_is_ended_at_its_limit_with_its_children() -> None:
    outcome = gpu_check.execute(["bash", "-c", "echo before; sleep 60 & wait"], 0.5)
    assert outcome.code is None
    assert "before" in outcome.output


def test_file_names() -> None:
    assert gpu_check.file_stem("NVIDIA H100 80GB HBM3", "1a2b3c4") == "gpu-nvidia-h100-80gb-hbm3-1a2b3c4"


def test_without_a_device_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "describe", lambda: {"device": "none", "commit": "x"})
    monkeypatch.setattr(gpu_check, "run_parts", lambda *_: pytest.fail("parts ran without a device"))
    assert gpu_check.main([]) == 1
    assert "expected a CUDA device" in capsys.readouterr().err


def test_the_report_has_every_part_and_the_table() -> None:
    records = [{"part": "tests", "status": "failed", "seconds": 3.0, "detail": "assert 1 == 2"}]
    row = {"batch": 16, "n_steps": 10, "kind": "forward", "contender": "cuda", "status": "ok", "seconds": 42e-6}
    bench = {"rows": [row], "ceilings": {"copy_bytes_per_second": 4e12}}
    cell = {"threads": 1, "batch": 1, "steps": 10, "us_per_image": {"median": 4.0}, "form": "", "refused": {}}
    rival = cell | {"contender": "defense-gan R=1", "us_per_image": {"median": 44.0}, "form": "eager"}
    rival["refused"] = {"eager, graph": "it waits"}
    failure = {"contender": "inc", "batch": 1, "steps": 10, "error": "MemoryError: no more"}
    cells = [cell | {"contender": "malade cuda"}, rival]
    defenses = {"cells": cells, "warnings": ["a warning"], "failures": [failure]}
    text = gpu_check.as_markdown({"device": "G", "commit": "c", "torch": "2", "cuda": "13"}, records, bench, defenses)
    assert "| malade cuda | 1 | 10 | 4.00 | launches |" in text
    assert "| defense-gan R=1 | 1 | 10 | 11.0 | 5.4 |" in text
    for remark in ("warning: a warning", "failed: inc, batch 1, N=L=10: MemoryError", "as eager, graph: it waits"):
        assert remark in text
    assert "| tests | failed | 3 |" in text
    assert "assert 1 == 2" in text
    assert f"| 16 | 10 | forward | 42.0 |{' not run |' * (len(gpu_bench.CONTENDERS) - 1)}" in text


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


HOT_KERNELS = 17  # 13 in float32, two precisions on tensor cores with weights resident or streamed

REPORT = """ptxas info    : Compiling entry function 'void fastmalade::cuda::chain_kernel<fastmalade::cuda::Form<fastmalade::cuda::FixedShape<1, 28, 28, 10, 25>, fastmalade::cuda::TileSizes<7, 10, 7, 10, 7, 10>, fastmalade::cuda::BlockPeers, 8, 256, true, true, true> >(fastmalade::cuda::ChainParameters)' for 'sm_90'
ptxas info    : Function properties for x
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 220 registers, used 1 barriers
"""  # noqa: E501


def test_reports_are_read_and_spills_found() -> None:
    rows = gpu_resources.parse_report(REPORT, "sm_90")
    expected = {"kernel": "chain digits x8, weights resident", "arch": "sm_90", "registers": 220}
    assert rows == [expected | {"stack_bytes": 0, "spill_stores": 8, "spill_loads": 12}]
    assert gpu_resources.spills(rows) == ["chain digits x8, weights resident on sm_90: 8 bytes stored, 12 loaded"]
    with pytest.raises(ValueError, match="registers"):
        gpu_resources.parse_report(REPORT.splitlines()[0], "sm_90")


def test_instructions_are_counted() -> None:
    sass = ("Function : void fastmalade::cuda::noise_kernel(fastmalade::cuda::NoiseParameters)\n"
            " /*0000*/  FFMA R1, R2 ;\n /*0010*/  @!P0 HMMA.16816.F32 R1 ;\n /*0020*/ STL [R1], R2 ;\n")  # fmt: skip
    counts = gpu_resources.count_instructions(sass)["noise"]
    assert counts == {"ffma": 1, "lds": 0, "ldg": 0, "local": 1, "tensor": 1, "instructions": 3}


def test_the_committed_table_is_of_todays_sources_and_shows_no_spills() -> None:
    table = json.loads(gpu_resources.RESULTS.read_text(encoding="utf-8"))
    assert table["source_hash"] == gpu_resources.source_hash(), "run: python tools/gpu_resources.py"
    assert {row["arch"] for row in table["rows"]} == set(gpu_resources.ARCHITECTURES)
    hot = [row for row in table["rows"] if row["kernel"].startswith(gpu_resources.HOT)]
    assert len(hot) == HOT_KERNELS * len(gpu_resources.ARCHITECTURES)
    on_tensor_cores = [row for row in hot if "tensor" in row["kernel"]]
    assert len(on_tensor_cores) == 4 * len(gpu_resources.ARCHITECTURES)
    assert all((row["tensor"] > 0) == (row in on_tensor_cores) for row in hot)
    assert gpu_resources.spills(table["rows"]) == []


def test_the_prediction_counts_the_products_of_the_kernels() -> None:
    # By the numbers of one image: valid taps along a side are 32 of conv2 and 29 of deconv1 (both of 7 positions).
    conv2, deconv1 = gpu_prediction.products("tf32")
    assert conv2.all() == 2 * (32 * 32 + 7 * 49)
    assert deconv1.all() == 3 * (3 * 29 * 29 + 4 * 49)
    assert [layer.all() for layer in gpu_prediction.products("tf32x3")] == [conv2.all(), deconv1.all()]
    # What stands in the loops of the machine code is what one row of taps takes there.
    for precision, parts in (("tf32", 1), ("tf32x3", 3)):
        loops = [loop for loop in loops_of(precision) if loop["tensor"]]
        whole = sum(loop["tensor"] for loop in loops[2::2])
        assert (loops[0]["tensor"], whole) == (parts * 2 * 19, parts * 3 * 29)
        cycles = [sum(gpu_prediction.tensor_cycles(loops_of(precision), precision, rate).values())
                  for rate in (1024, 512)]  # fmt: skip
        assert cycles[0] < cycles[1] < 2 * cycles[0]


def loops_of(precision: str) -> list[dict[str, int]]:
    return gpu_prediction.read_loops(f"chain tensor {precision}, weights resident")


@pytest.mark.complete
@pytest.mark.parametrize("architecture", gpu_resources.ARCHITECTURES)
def test_compiled_now_nothing_spills(architecture: str, tmp_path) -> None:
    if gpu_resources.load_setup().find_nvcc() is None:
        pytest.skip("nvcc is not on this machine")
    rows = gpu_resources.compile_rows(architecture, tmp_path)
    assert len([row for row in rows if row["kernel"].startswith(gpu_resources.HOT)]) == HOT_KERNELS
    assert gpu_resources.spills(rows) == []
