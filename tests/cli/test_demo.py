"""``fastmalade demo``: a small run of the whole, what it says of itself, and its last sentence."""

from __future__ import annotations

import json
import math
import signal
import time

import numpy as np
import pytest
import torch

from fastmalade.bench.report import Grid
from fastmalade.cli.demo_report import summary, timing_json
from fastmalade.evaluation import TransferRow, WhiteboxRow, percent

pytest.importorskip("foolbox")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("quick_measurements")
IMAGES, WHITEBOX = 16, 3


@pytest.fixture(scope="module")
def demo_run(quick_measurements, tmp_path_factory):
    """One quick run: its result and its folder."""
    from typer.testing import CliRunner

    from fastmalade.cli.app import app

    output = tmp_path_factory.mktemp("demo") / "deep" / "output"
    arguments = ["demo", "--quick", "--images", str(IMAGES), "--whitebox-images", str(WHITEBOX)]
    result = CliRunner().invoke(app, [*arguments, "--output", str(output)])
    return result, output


def test_end_to_end(demo_run):
    result, output = demo_run
    assert result.exit_code == 0, result.output
    assert sorted(entry.name for entry in output.iterdir()) == ["demo.log", "figure.png", "results.json"]
    for part in ("bare", "MALA", "MALADE", "fgsm", "pgd", "PyTorch eager", "pgd:unrolled", "pgd:bpda"):
        assert part in result.stdout
    lines = result.stdout.splitlines()
    (picture,) = (number for number, line in enumerate(lines) if line.startswith("Picture: "))
    assert lines[picture] == f"Picture: {output / 'figure.png'}"
    assert " ".join(lines[picture + 1 :]).startswith("Shown: under pgd at eps 0.3 the classifier gets ")


def test_it_says_what_it_does(demo_run):
    result, output = demo_run
    log = (output / "demo.log").read_text(encoding="utf-8")
    assert result.stderr == log
    stages = ["attacking the bare classifier, fgsm", "attacking the bare classifier, pgd", "drawing the figure"]
    stages += [f"attacking through the defence, {name}" for name in ("MALADE", "robust")] + ["timing"]
    places = [log.index(f"{stage}{part}") for stage in stages for part in (" ...", ": done in ")]
    assert places == sorted(places)
    assert list(json.loads((output / "results.json").read_text(encoding="utf-8"))["stages"]) == stages


def test_results_file(demo_run):
    results = json.loads((demo_run[1] / "results.json").read_text(encoding="utf-8"))
    attacks = [(row["attack"], row["epsilon"]) for row in results["transfer"]]
    assert attacks == [("none", 0.0), *((name, eps) for name in ("fgsm", "pgd") for eps in (0.1, 0.2, 0.3))]
    for row in results["transfer"]:
        assert row["n"] == IMAGES
        for column in ("bare", "MALA", "MALADE", "robust"):
            low, high = row[column]["interval"]
            assert 0 <= low <= row[column]["accuracy"] <= high <= 1
            assert row[column]["accuracy"] == row[column]["correct"] / IMAGES
    clean, worst = results["transfer"][0], results["transfer"][-1]
    assert clean["bare"]["accuracy"] > 0.9
    assert worst["bare"]["accuracy"] < worst["MALADE"]["accuracy"]
    names = ["none", "pgd:blind", "pgd:bpda", "pgd:unrolled", "worst per image"]
    for block in ("whitebox", "whitebox_robust"):
        assert [(row["attack"], row["n"]) for row in results[block]] == [(name, WHITEBOX) for name in names]
    assert [row["batch"] for row in results["timing"]] == [1, 16]
    assert all(row["eager_us_per_image"] > 0 for row in results["timing"])
    assert results["machine"]["threads"] == torch.get_num_threads()


def test_figure_shows_something(demo_run):
    image_module = pytest.importorskip("PIL.Image")
    with image_module.open(demo_run[1] / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 300
    grey = pixels[..., 0]
    # Black digits' grounds, white paper, and coloured probabilities.
    assert (grey < 30).mean() > 0.1
    assert (grey > 225).mean() > 0.1
    assert ((pixels.max(2) - pixels.min(2)) > 60).sum() > 500


@pytest.mark.slow
def test_same_seed_same_figures(demo_run, invoke, tmp_path):
    again = invoke(
        "demo",
        "--quick",
        "--images",
        IMAGES,
        "--whitebox-images",
        WHITEBOX,
        "--output",
        tmp_path,
    )
    assert again.exit_code == 0, again.output
    first = json.loads((demo_run[1] / "results.json").read_text(encoding="utf-8"))
    second = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for part in ("transfer", "figure"):
        assert first[part] == second[part]
    timeless = [[{**row, "seconds": None, "cosine": None} for row in run["whitebox"]] for run in (first, second)]
    assert timeless[0] == timeless[1]
    # The classifier's gradient is torch's, which rounds by where its arrays lie in memory.
    cosines = [[row.get("cosine") or 0.0 for row in run["whitebox"]] for run in (first, second)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-5)


def test_more_whitebox_images_than_images_are_refused(invoke, tmp_path):
    result = invoke("demo", "--images", 5, "--whitebox-images", 6, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "expected at most --images 5, got 6" in result.stderr


def test_missing_packages_are_named(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr("fastmalade.cli.errors.find_spec", lambda name: None)
    result = invoke("demo", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'fastmalade[demo]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_interruption_is_one_line_more(spawn, tmp_path):
    process = spawn("demo", "--output", tmp_path / "out", OMP_NUM_THREADS="1")
    log = tmp_path / "out" / "demo.log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and "attacking" in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in stderr
    assert "attacking the bare classifier, fgsm: stopped after" in stderr.splitlines()[-2]
    assert stderr.splitlines()[-1] == "interrupted"


@pytest.fixture
def grid():
    """Two batch sizes of which the native chain was timed on one."""

    def cell(contender, batch, median):
        times = {"median": median, "fastest": median - 1, "repetitions": int(median)}
        return {"contender": contender, "batch": batch, "shape": "1x28x28", "steps": 10, "us_per_image": times}

    contenders = {
        "native": {"peer": False, "rewritten": False, "threads": 1},
        "eager": {"peer": True, "rewritten": False, "threads": 1},
    }
    cells = [cell("native", 1, 25.0), cell("eager", 1, 100.0), cell("eager", 16, 80.0)]
    return Grid({"contenders": contenders, "cells": cells, "settings": {"threads": 1}}, "1x28x28", 10)


def test_times_as_json(grid):
    both, alone = timing_json(grid)
    assert (both["batch"], both["repeats"], both["ratio"]) == (1, 25, 4.0)
    assert (both["eager_us_per_image"], both["native_fastest_us_per_image"]) == (100.0, 24.0)
    assert (alone["batch"], alone["native_us_per_image"], alone["ratio"]) == (16, None, None)


def test_the_last_sentence(grid):
    transferred = TransferRow("pgd", 0.3, 200, {"bare": 2, "MALA": 150, "MALADE": 160})
    rows = [WhiteboxRow(name, 10, None, correct, None, None, None, None) for name, correct in (("a", 9), ("b", 4))]
    robust = [WhiteboxRow("a", 10, None, 7, None, None, None, None)]
    assert summary(transferred, rows, robust, grid) == (
        "Shown: under pgd at eps 0.3 the classifier gets 1% of the digits right bare and 80% behind MALADE; an attack "
        "that knows the purifier leaves 40% behind MALADE and 70% behind the one trained under attack; MALADE's native "
        "chain is 4 times as fast as PyTorch eager."
    )


def test_percent_with_interval():
    # The Wilson interval of 8 out of 10 at 95%, from its formula with z = 1.95996.
    z = 1.959964
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * math.sqrt(0.8 * 0.2 / 10 + z * z / 400)
    assert percent(8, 10) == f"80.0 [{100 * (centre - half):.1f}, {100 * (centre + half):.1f}]"
    assert percent(8, 10, 2, "%").startswith("80.00% [")
