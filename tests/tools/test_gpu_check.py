"""The logic of `make gpu-check`, with invented devices, clocks and reports."""

from __future__ import annotations

import gpu_bench
import gpu_check
import pytest


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
