"""``fastmalade bench defenses``: what is timed is what was asked for, verified, and put beside the paper."""

from __future__ import annotations

import json

import pytest
import torch

from fastmalade import backends
from fastmalade.bench.defense_forms import forms
from fastmalade.bench.defense_report import tables
from fastmalade.bench.defenses import PAPER_SECONDS, DefenseSettings, build, ratios, run

QUICK = {"batches": (1, 2), "steps": (2,), "restarts": (1,), "threads": (1,), "seconds": 0.0, "compiled": False}
pytestmark = pytest.mark.usefixtures("quick_measurements")
needs_native = pytest.mark.skipif(backends.available()["cpu"] is not None, reason="no native kernels")


@needs_native
def test_cells_file_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmalade.bench.defenses.GAN_STEPS", 3)
    names = ("malade native", "malade eager", "defense-gan R=1", "inc", "apudae table 8")
    settings = DefenseSettings(**QUICK, contenders=names)
    output = tmp_path / "defenses.json"
    told = []
    result = run(settings, output=output, report=lambda what, part: told.append(part))
    stored = json.loads(output.read_text())
    assert stored["complete"]
    assert stored["cells"] == result["cells"]
    assert told == sorted(told)
    assert len(told) == 4
    timed = {(c["contender"], c["batch"], c["steps"]) for c in result["cells"]}
    assert timed == {(n, b, 2) for n in names for b in (1, 2)} | {("defense-gan R=1", b, 3) for b in (1, 2)}
    for cell in result["cells"]:
        assert cell["us_per_image"]["median"] > 0
        assert cell["flops_per_image"] == build(cell["contender"], cell["steps"]).cost(1).flops
    text = [[str(c) for column in table.columns for c in column.cells] for table in tables(result)]
    assert "defense-gan R=1" in text[0]
    assert len(text) == 2


def test_ratios_stand_beside_the_papers():
    def cell(name, steps, median):
        return {"contender": name, "threads": 1, "batch": 1, "steps": steps, "us_per_image": {"median": median}}

    cells = [cell("malade native", 10, 2.0), cell("defense-gan R=1", 10, 300.0), cell("defense-gan R=1", 200, 9.0)]
    (row,) = ratios({"cells": cells})
    assert row["ratio"] == 150.0
    assert row["paper"] == pytest.approx(5.375)
    assert [round(rival / own, 1) for own, rival in PAPER_SECONDS.values()] == [5.4, 4.4, 4.9]


def test_a_call_that_takes_long_is_timed_once():
    settings = DefenseSettings(**{**QUICK, "batches": (1,)}, contenders=("inc",), longest=1e-9)
    (cell,) = run(settings)["cells"]
    assert cell["us_per_image"]["repetitions"] == 1


@pytest.mark.parametrize("name", ["inc", "defense-gan R=2", "apudae table 8"])
def test_forms_compute_the_same(name):
    defense = build(name, 3)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = defense(x, seed=1)
    found = forms(defense, compiled=False)
    assert len(found) == (1 if name == "inc" else 2)
    for form in found.values():
        torch.testing.assert_close(form(x, seed=1), expected, rtol=0, atol=1e-4)
        assert form.n_steps == 3


def test_a_form_that_computes_something_else_is_refused(monkeypatch):
    real = forms

    def broken(defense, *, compiled):
        found = real(defense, compiled=compiled)
        other = build("inc", 3)
        other.rate, other.optimizer = 0.5, type(other.optimizer)(0.5)
        return {**found, "broken": other}

    monkeypatch.setattr("fastmalade.bench.defense_forms.forms", broken)
    with pytest.raises(ValueError, match="broken: expected the images of the eager form"):
        run(DefenseSettings(**QUICK, contenders=("inc",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": (0,)}, "batches: expected at least one number"),
        ({"steps": ()}, "steps: expected at least one number"),
        ({"seconds": -1.0}, "seconds, longest"),
        ({"contenders": ("nobody",)}, "contenders: expected any of malade native"),
        ({"contenders": ("malade native",), "device": "cuda"}, "contenders: expected any of malade cuda"),
        ({"device": "tpu"}, "device: expected cpu or cuda, got 'tpu'"),
        ({"device": "cuda", "threads": (1,)}, "threads: expected none on cuda"),
        ({"limit": 0.0}, "limit: expected a positive number"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DefenseSettings(**settings)
    with pytest.raises(ValueError, match="contender: expected another name"):
        build("nobody", 1)
