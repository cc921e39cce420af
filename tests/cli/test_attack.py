"""``fastmalade attack`` on the embedded digits."""

from __future__ import annotations

import json
import signal
import time

import pytest


def test_table_figures_and_resume(invoke, model_path, tmp_path):
    output = tmp_path / "figures.json"
    arguments = ["attack", "--model", model_path, "--images", 12, "--steps", 2, "--eot", 2, "--judge-chains", 3]
    arguments += ["--attacks", "pgd:unrolled,pgd:blind,apudae-a,rfgsm", "--output", output]
    arguments += ["--checkpoint-dir", tmp_path / "state"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "pgd:unrolled" in result.stdout
    assert "worst per image" in result.stdout
    figures = json.loads(output.read_text())
    rows = {row["attack"]: row for row in figures["rows"]}
    assert list(rows) == ["none", "pgd:unrolled", "pgd:blind", "apudae-a", "rfgsm", "worst per image"]
    assert rows["none"]["gradients_per_image"] == 1
    assert rows["pgd:unrolled"]["gradients_per_image"] == 4
    assert rows["pgd:unrolled"]["cosine"] is not None
    assert rows["apudae-a"]["cosine"] is None
    for row in list(rows.values())[:-1]:
        assert rows["worst per image"]["majority_correct"] <= row["majority_correct"] <= 12
        assert 0 <= row["accuracy_per_query"] <= 1
    assert figures["settings"]["pgd:unrolled"]["steps"] == 2
    assert len(list((tmp_path / "state").iterdir())) == 4
    # Finished runs are read back: the same figures, seconds of the first run included.
    assert invoke(*arguments).exit_code == 0
    again = {row["attack"]: row for row in json.loads(output.read_text())["rows"]}
    assert {k: v for k, v in again.items() if k != "none"} == {k: v for k, v in rows.items() if k != "none"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "cw"], "--attacks"),
        (["--attacks", "pgd:exact"], "--attacks"),
        (["--attacks", ","], "at least one"),
        (["--epsilon", -1], "epsilon"),
        (["--norm", "l7"], "norm"),
        (["--eot", 0], "eot"),
        (["--split", "train"], "--split"),
        (["--images", 1001], "--images"),
        (["--attacks", "rpgd:blind"], "gradient"),
    ],
)
def test_wrong_arguments_are_one_line(invoke, model_path, arguments, message):
    result = invoke("attack", "--model", model_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_interrupted_attack_goes_on(spawn, invoke, model_path, tmp_path):
    state, output = tmp_path / "state", tmp_path / "figures.json"
    arguments = ["attack", "--model", model_path, "--images", 12, "--steps", 40, "--eot", 1, "--attacks", "pgd"]
    arguments += ["--judge-chains", 3, "--batch-size", 2, "--checkpoint-dir", state, "--output", output]
    process = spawn(*arguments, OMP_NUM_THREADS="1")
    path = state / "0-pgd.safetensors"
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--checkpoint-dir" in stderr
    assert path.exists()
    assert not output.exists()
    assert invoke(*arguments).exit_code == 0
    resumed = json.loads(output.read_text())["rows"][1]
    whole = tmp_path / "whole.json"
    arguments[arguments.index(state)] = tmp_path / "other"
    arguments[arguments.index(output)] = whole
    assert invoke(*arguments).exit_code == 0
    uninterrupted = json.loads(whole.read_text())["rows"][1]
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {
        k: v for k, v in uninterrupted.items() if k != "seconds"
    }
    assert resumed["gradients_per_image"] == 40
