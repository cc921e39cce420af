"""benchmarks/make_training_tables.py: what the tables say, and that the committed ones are those it makes."""

from __future__ import annotations

import sys

import make_training_tables as make
from matplotlib.image import imread


def cell(transferred: float, exact: int) -> dict:
    return {
        "transferred": transferred,
        "n": 2000,
        "correct": {"clean": 1960},
        "bpda": {"majority_correct": 120, "n": 200},
        "exact": {"majority_correct": exact, "n": 200},
    }


CELLS = {
    "lambda=0 sigma2=0.15 start=dae seed=0": cell(0.7, 90),
    "lambda=784 sigma2=0.15 start=dae seed=0": cell(0.8123, 111),
}


def test_the_committed_tables_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_training_tables.py", "--check"])
    assert make.main() == 0
    assert capsys.readouterr().out == "up to date\n"


def test_cells_in_their_places():
    lines = make.supervision(CELLS).splitlines()
    assert lines[0].startswith("| sigma^2 | lambda = 0 | lambda = 1 |")
    assert lines[2:] == ["| 0.15, from a DAE | 70.0 / 60.0 / 45.0 (98.0) |  |  |  | 81.2 / 60.0 / 55.5 (98.0) |"]


def test_pairs_with_intervals_and_without():
    pairs = {
        "a + b": {"clean": {"correct": 9900, "n": 10000}, "exact": {"correct": 100, "n": 200}},
        "b": {"exact": {"correct": 10, "n": 1000}},
    }
    assert make.robustness(pairs).splitlines() == [
        "| pair | clean | exact |",
        "| --- | ---: | ---: |",
        "| a + b | 99.0 [98.8, 99.2] | 50.0 [43.1, 56.9, n = 200] |",
        "| b |  | 1.0 [0.5, 1.8] |",
    ]


def test_times():
    row = {"ms_per_image": {"fastmalade": 1.234, "eager": 9.876}, "ratio": 8.0, "quartiles": [7.5, 8.25]}
    assert (
        make.times({"machine": {}, "training": row}).splitlines()[2] == "| training | 1.23 | 9.88 | 8.0x [7.5, 8.2] |"
    )


def test_the_plot_is_drawn(tmp_path):
    make.draw(CELLS, tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").std() > 0.05
