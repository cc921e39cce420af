"""``fastmalade evaluate`` with a suite of a few steps."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("art")

SUITE = """
purpose = "seconds"
images = 4
epsilon = 0.3
norm = "linf"
judge_chains = 3
step_share = 0.2
schedule = "cosine"
[[attacks]]
name = "exact"
knows = "everything but the noise"
gradient = "unrolled"
steps = {steps}
eot = 2
restarts = 2
"""


@pytest.fixture
def suite_file(tmp_path):
    def written(steps):
        path = tmp_path / "suite.toml"
        path.write_text(SUITE.format(steps=steps))
        return path

    return written


def test_report_in_a_folder(invoke, suite_file, tmp_path):
    arguments = ["evaluate", "--suite", suite_file(30), "--images", 3, "--output", tmp_path / "out"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["n"] for row in found["rows"]] == [3, 3]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert found["verdict"] in result.stdout
    assert invoke(*arguments).exit_code == 0


def test_a_verdict_of_fail_is_exit_code_3(invoke, suite_file):
    result = invoke("evaluate", "--suite", suite_file(2), "--epsilon", 0.05)
    assert result.exit_code == 3
    assert "FAIL  converged" in result.stdout


def test_the_bare_classifier(invoke, suite_file):
    result = invoke("evaluate", "--model", "none", "--suite", suite_file(10))
    assert result.exit_code == 0, result.stdout
    assert "ClassifierC" in result.stdout


def test_two_machines_and_one_report(invoke, suite_file, tmp_path):
    for shard in ("1/2", "2/2"):
        name = tmp_path / shard[0]
        result = invoke("evaluate", "--suite", suite_file(30), "--shard", shard, "--output", name)
        assert result.exit_code == 0, result.stdout + result.stderr
    result = invoke("merge", tmp_path / "1", tmp_path / "2", "--output", tmp_path / "all")
    assert result.exit_code == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "all" / "report.json").read_text())
    assert found["rows"][1]["n"] == 4
    assert (tmp_path / "all" / "report.html").exists()
    half = invoke("merge", tmp_path / "2", "--output", tmp_path / "half")
    assert half.exit_code == 2
    assert "after 0 images" in half.stderr
    (tmp_path / "1" / "report.json").write_text("{}")
    broken = invoke("merge", tmp_path / "1", tmp_path / "2", "--output", tmp_path / "half")
    assert broken.exit_code == 2
    assert "expected a report" in broken.stderr
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "fast"], "suite"),
        (["--norm", "l7"], "norm"),
        (["--epsilon", -1], "epsilon"),
        (["--split", "train"], "--split"),
        (["--images", 0], "--images"),
        (["--seed", -1], "seed"),
        (["--shard", "2"], "--shard"),
        (["--shard", "3/2"], "shard"),
    ],
)
def test_wrong_arguments_are_one_line(invoke, arguments, message):
    result = invoke("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
