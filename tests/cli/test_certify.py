"""``fastmalade certify`` on the embedded digits."""

from __future__ import annotations

import json

import pytest


def test_table_file_curve_and_resume(invoke, model_path, tmp_path):
    arguments = ["certify", "--model", model_path, "--images", 4, "--n", 20, "--n-selection", 5, "--sigma", 0.3]
    arguments += ["--radii", "0,0.2", "--output", tmp_path / "c.json", "--plot", tmp_path / "c.png"]
    arguments += ["--checkpoint", tmp_path / "counts.json"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "0.0071" in result.stdout  # 0.2 / 28
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["n"], found["sigma"], found["images"]) == (20, 0.3, 4)
    assert len(found["radius"]) == len(found["labels"]) == 4
    assert (tmp_path / "c.png").stat().st_size > 1000
    counts = (tmp_path / "counts.json").read_text()
    assert invoke(*arguments).exit_code == 0
    assert json.loads((tmp_path / "counts.json").read_text()) == json.loads(counts)


def test_sigma_is_that_of_the_training(invoke):
    result = invoke("certify", "--model", "mala-mnist", "--images", 1, "--n", 20, "--n-selection", 5, "--radii", "0")
    assert result.exit_code == 0, result.stderr
    from fastmalade.pretrained import read_header, resolve_path

    sigma = dict(read_header(resolve_path("mala-mnist"))["training"])["settings"]["sigma2"] ** 0.5
    assert f"sigma {sigma:.3g}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma", 0], "sigma"),
        (["--n", 5], "n: expected at least 10"),
        (["--radii", "a"], "--radii"),
        (["--radii", "-1"], "--radii"),
        (["--split", "train"], "--split"),
        (["--images", 0], "--images"),
    ],
)
def test_wrong_arguments_are_one_line(invoke, arguments, message):
    result = invoke("certify", "--model", "mala-mnist", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_that_does_not_say_its_noise(invoke, model_path):
    result = invoke("certify", "--model", model_path, "--images", 1)
    assert result.exit_code == 2
    assert "--sigma" in result.stderr
