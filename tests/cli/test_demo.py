"""``fastmalade demo``: the whole of it in small, and its parts by themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fastmalade import Autoencoder, ChainConfig, DefendedClassifier, Purifier
from fastmalade.demo import TimingRow, choose_digits
from fastmalade.demo.report import share, timing_doubt
from fastmalade.demo.timing import eager_chain, timing_table
from fastmalade.demo.whitebox import FreshNoise, WhiteboxSetting, whitebox_table

pytest.importorskip("foolbox")
pytest.importorskip("matplotlib")
IMAGES, WHITEBOX = 16, 3


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
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
    assert sorted(entry.name for entry in output.iterdir()) == ["figure.png", "results.json"]
    for part in ("bare %", "MALA %", "MALADE %", "fgsm", "pgd", "PyTorch eager", "exact unrolled", "BPDA"):
        assert part in result.stdout
    assert "the honest" in result.stdout


def test_results_file(demo_run):
    results = json.loads((demo_run[1] / "results.json").read_text(encoding="utf-8"))
    attacks = [(row["attack"], row["epsilon"]) for row in results["transfer"]]
    assert attacks == [("none", 0.0), *((name, eps) for name in ("fgsm", "pgd") for eps in (0.1, 0.2, 0.3))]
    for row in results["transfer"]:
        assert row["n"] == IMAGES
        for column in ("bare", "MALA", "MALADE"):
            low, high = row[column]["interval"]
            assert 0 <= low <= row[column]["accuracy"] <= high <= 1
            assert row[column]["accuracy"] == row[column]["correct"] / IMAGES
    clean, worst = results["transfer"][0], results["transfer"][-1]
    assert clean["bare"]["accuracy"] > 0.9
    assert worst["bare"]["accuracy"] < worst["MALADE"]["accuracy"]
    assert [row["n"] for row in results["whitebox"]] == [WHITEBOX] * 5
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
    for part in ("transfer", "whitebox", "figure"):
        assert first[part] == second[part]


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


class _Brightness(torch.nn.Module):
    """Ten classes by mean brightness, differentiable."""

    def forward(self, x):
        centres = torch.linspace(0.05, 0.95, 10)
        return -((x.mean(dim=(1, 2, 3))[:, None] - centres) ** 2) * 200


@pytest.fixture
def small_purifier():
    chain = ChainConfig(n_steps=2, step_size=0.2, noise_scale=0.1)
    return Purifier(Autoencoder(generator=torch.Generator().manual_seed(3)), chain)


def test_digits_are_chosen_by_the_rule():
    labels = torch.tensor([0, 3, 3, 5, 0, 7, 7])
    bright = 0.05 + 0.1 * labels.float()
    originals = bright[:, None, None, None].expand(-1, 1, 4, 4).clone()
    attacked = originals + 0.2
    attacked[1] = originals[1]  # not fooled: the next 3 takes its place
    originals[3] += 0.3  # wrong as it is: no 5 at all
    assert choose_digits(_Brightness(), originals, attacked, labels, 6) == [0, 2, 5]
    assert choose_digits(_Brightness(), originals, attacked, labels, 2) == [0, 2]


def test_noise_is_fresh_at_every_call_and_repeats_with_the_seed(small_purifier, digits):
    x = digits[0][:3]
    defended = DefendedClassifier(small_purifier, _Brightness())
    first, second = FreshNoise(defended, 7), FreshNoise(defended, 7)
    calls = [first(x) for _ in range(3)]
    for call in calls:
        assert torch.equal(call, second(x))
    assert not torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[1], calls[2])
    torch.manual_seed(0)
    replayed = first(x)
    torch.manual_seed(0)
    assert not torch.equal(replayed, first(x))


def test_whitebox_attacks_are_stronger_than_none(small_purifier, digits):
    x = digits[0][:8]
    labels = _Brightness()(small_purifier(x, seed=1)).argmax(1)
    rows = whitebox_table(
        small_purifier,
        _Brightness(),
        x,
        labels,
        epsilon=0.3,
        settings=[WhiteboxSetting("unrolled", 8, 0.05, 2), WhiteboxSetting("bpda", 8, 0.05, 1)],
        transferred=("pgd", x),
        seed=0,
    )
    assert [row.n for row in rows] == [8] * 5
    assert rows[0].correct >= 6
    assert rows[2].correct < rows[0].correct
    assert rows[4].correct <= min(rows[2].correct, rows[3].correct)
    assert "EOT over 2 noise draws" in rows[2].attack


def test_eager_side_of_the_timing_computes_the_same_chain(digits):
    x = digits[0][:7]
    chain = ChainConfig(n_steps=4, step_size=0.3, noise_scale=0.0, decay=0.5)
    purifier = Purifier(Autoencoder(generator=torch.Generator().manual_seed(4)), chain)
    torch.testing.assert_close(eager_chain(purifier, x), purifier(x), atol=2e-6, rtol=0)


def test_eager_side_adds_noise_of_the_right_size(digits):
    x = torch.full((64, 1, 28, 28), 0.5)
    chain = ChainConfig(n_steps=1, step_size=0.0, noise_scale=0.05, clamp="none")
    purifier = Purifier(Autoencoder(), chain)
    added = eager_chain(purifier, x) - x
    assert added.std().item() == pytest.approx(0.05, rel=0.02)


def test_timing_rows(small_purifier, digits):
    rows = timing_table(small_purifier, digits[0][:3], [1, 7], seconds_per_batch=0.01)
    assert [row.batch for row in rows] == [1, 7]
    assert all(row.repeats >= 3 for row in rows)
    for row in rows:
        assert 0 < row.eager_fastest_us <= row.eager_us
    assert TimingRow(1, 3, 100.0, 25.0, 90.0, 20.0).ratio == 4.0
    assert TimingRow(1, 3, 100.0, None, 90.0, None).ratio is None


def test_timing_says_when_the_machine_was_busy():
    steady, busy = TimingRow(1, 3, 100.0, 25.0, 90.0, 20.0), TimingRow(16, 3, 100.0, 25.0, 99.0, 10.0)
    assert timing_doubt([steady]) is None
    assert "2.5 times" in timing_doubt([steady, busy])


def test_share_prints_percent_and_interval():
    # The Wilson interval of 8 out of 10 at 95%, from its formula with z = 1.95996.
    z = 1.959964
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * math.sqrt(0.8 * 0.2 / 10 + z * z / 400)
    assert share(8, 10) == f" 80.0 [{100 * (centre - half):5.1f}, {100 * (centre + half):5.1f}]"
