"""``fastmalade bench`` as a command."""

from __future__ import annotations

import json
import signal
import time

import pytest

from fastmalade import backends

SMALL = ["--batches", "1,2", "--steps", 1, "--shapes", "1x8x12", "--seconds", 0]
pytestmark = pytest.mark.usefixtures("quick_measurements")
HAS_NATIVE = backends.available()["cpu"] is None


def test_table_file_and_resume(tmp_path, invoke):
    output = tmp_path / "bench.json"
    arguments = ["bench", "--peers", "eager", *SMALL, "--output", output]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "1x8x12, N=1: microseconds per image, medians" in result.stdout
    assert "native vs best peer" in result.stdout or not HAS_NATIVE
    first = json.loads(output.read_text())
    assert first["complete"]
    resumed = invoke("bench", "--peers", "eager,eager-rewritten", *SMALL, "--output", output, "--resume")
    assert resumed.exit_code == 0, resumed.output
    cells = json.loads(output.read_text())["cells"]
    assert cells[: len(first["cells"])] == first["cells"]
    assert {cell["contender"] for cell in cells} >= {"eager", "eager-rewritten"}


def test_plot(tmp_path, invoke):
    pytest.importorskip("matplotlib")
    result = invoke("bench", "--peers", "eager", *SMALL, "--gradient", "--plot", tmp_path / "bench.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "nobody"], "peers: expected any of"),
        (["--batches", "x"], "--batches: expected integers"),
        (["--batches", "0"], "batches: expected at least 1"),
        (["--shapes", "28x28"], "expected CxHxW such as 1x28x28"),
        (["--threads", 100000], "threads: expected 1 to"),
        (["--resume"], "--resume: expected --output too"),
        (["--isa", "sse9", "--peers", "none", *SMALL], "expected at least one contender that can run here"),
    ],
)
def test_bad_arguments_are_one_line(invoke, arguments, message):
    result = invoke("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device: expected cpu or cuda, got 'tpu'"),
        (["--device", "cuda", "--threads", "1"], "threads: expected none on cuda"),
        (["--limit", "0"], "limit: expected a positive number of seconds"),
    ],
)
def test_bad_arguments_of_the_defences(invoke, arguments, message):
    result = invoke("bench", "defenses", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.skipif(not HAS_NATIVE, reason="needs the native extension")
def test_stages_print_a_table_or_why_there_is_none(invoke):
    from fastmalade import _cpu

    result = invoke("bench", "--stages", "--shapes", "1x8x12")
    if hasattr(_cpu, "stage_times"):
        assert result.exit_code == 0, result.output
        assert "throughput form, one core" in result.stdout
    else:
        assert result.exit_code == 2
        assert "cannot time its stages" in result.stderr


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_file_to_go_on_from(tmp_path, spawn):
    output = tmp_path / "bench.json"
    # Four seconds for each batch size: the signal comes while the second is measured.
    process = spawn(
        "bench", "--peers", "eager", "--batches", "1,2", "--steps", 1, "--shapes", "1x8x12", "--seconds", 2,
        "--output", output, OMP_NUM_THREADS="1",
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not output.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "--resume goes on from it" in errors
    left = json.loads(output.read_text())
    assert not left["complete"]
    assert {cell["batch"] for cell in left["cells"]} == {1}


def test_defenses_is_a_command_of_its_own(tmp_path, invoke):
    output = tmp_path / "defenses.json"
    arguments = ["--contenders", "inc,magnet", "--batches", 1, "--steps", 1, "--threads", 1, "--seconds", 0]
    result = invoke("bench", "defenses", *arguments, "--no-compiled", "--output", output)
    assert result.exit_code == 0, result.output
    assert "microseconds per image on 1x28x28, medians, 1 thread" in result.stdout
    assert {cell["contender"] for cell in json.loads(output.read_text())["cells"]} == {"inc", "magnet"}
    refused = invoke("bench", "defenses", "--contenders", "nobody")
    assert refused.exit_code == 2
    assert "contenders: expected any of" in refused.stderr
