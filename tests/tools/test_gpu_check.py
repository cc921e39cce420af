"""The logic of `make gpu-check`, with invented devices, clocks and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_bench
import gpu_check
import pytest
import torch
from repository import ROOT


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


def test_every_file_with_tests_of_the_gpu_is_named() -> None:
    (tests,) = [part for part in gpu_check.parts("python") if part.name == "tests"]
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text("utf-8")]
    marked = [path for path in marked if path.name != Path(__file__).name]
    assert sorted(str(path.relative_to(ROOT)) for path in marked) == sorted(gpu_check.GPU_TESTS)
    assert set(gpu_check.GPU_TESTS) <= set(tests.command)
    assert {"memcheck", "racecheck", "synccheck"} <= {part.name for part in gpu_check.parts("python")}


def test_tests_that_are_skipped_are_failures_where_they_are_required() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "tests/executor/test_on_gpu.py",
    ]
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    codes = {}
    for required in ("0", "1"):
        environment = {**os.environ, "FASTMALADE_REQUIRE_CUDA": required}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        codes[required] = done.returncode
        assert ("FASTMALADE_REQUIRE_CUDA=1: Skipped: PyTorch sees no CUDA device" in done.stdout) == (required == "1")
    assert codes == {"0": 0, "1": 1}


def test_commands_see_the_path_that_was_there(monkeypatch) -> None:
    show = [sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'], os.environ['FASTMALADE_REQUIRE_CUDA'])"]
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert gpu_check.execute(show, 20).output.split() == [f"{ROOT}{os.pathsep}/elsewhere", "1"]
    monkeypatch.delenv("PYTHONPATH")
    assert gpu_check.execute(show, 20).output.split() == [str(ROOT), "1"]


def test_nvcc_is_where_the_build_finds_it(monkeypatch) -> None:
    import gpu_resources

    monkeypatch.setattr(gpu_resources, "load_setup", lambda: SimpleNamespace(find_nvcc=lambda: "/opt/cuda/bin/nvcc"))
    assert gpu_check.find_program("nvcc") == "/opt/cuda/bin/nvcc"
    assert gpu_check.find_program("no-such-program-at-all") is None


def test_a_machine_without_git(monkeypatch) -> None:
    def missing(*_arguments, **_options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(gpu_check.subprocess, "run", missing)
    assert gpu_check.describe()["commit"] == "unknown"


@pytest.mark.parametrize("missing", [None, "compute-sanitizer"])
def test_the_whole_with_a_torch_that_claims_a_gpu(monkeypatch, tmp_path, capsys, missing) -> None:
    """Results are there after every part, and a part that is skipped is no success."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = SimpleNamespace(name="Stand-in 1", multi_processor_count=4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    for name in ("BENCH_FILE", "DEFENSES_FILE"):
        monkeypatch.setattr(gpu_check, name, tmp_path / "parts" / f"{name}.json")
    seen = []

    def run(command, limit):
        files = sorted(tmp_path.glob("gpu-stand-in-1-*.json"))
        seen.append(len(json.loads(files[0].read_text())["parts"]) if files else 0)
        return gpu_check.Outcome(0, "fine")

    exact = gpu_check.run_parts
    find = lambda name: None if name == missing else f"/bin/{name}"  # noqa: E731
    monkeypatch.setattr(
        gpu_check, "run_parts", lambda parts, keep: exact(parts, run, find, say=lambda text: None, keep=keep)
    )
    assert gpu_check.main([]) == (0 if missing is None else 1)
    assert seen == list(range(7 if missing is None else 4))
    assert "| tests | ok |" in capsys.readouterr().out
    assert len(list(tmp_path.glob("gpu-stand-in-1-*.md"))) == 1


def test_a_benchmark_without_one_kernel_of_ours_is_a_failure() -> None:
    ok, peer = {"contender": "cuda", "status": "ok"}, {"contender": "eager", "status": "ok"}
    assert gpu_bench.exit_status([ok, {"contender": "eager", "status": "failed: x"}]) == 0
    assert gpu_bench.exit_status([peer]) == 1
    assert gpu_bench.exit_status([ok, {"contender": "cuda", "status": "failed: x"}]) == 1
    assert gpu_bench.exit_status([{"contender": "cuda", "status": "not run: out of time"}, peer]) == 1
