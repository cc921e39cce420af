"""benchmarks/make_reproduction.py: the papers' tables, our cells in them, and that the committed page is up to date."""

from __future__ import annotations

import sys

import make_reproduction as make
import pytest


def test_the_committed_page_is_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_reproduction.py", "--check"])
    assert make.main() == 0
    assert capsys.readouterr().out == "up to date\n"


def test_tables_are_whole():
    tables = list(make.paper_tables())
    names = [printed["name"] for printed in tables]
    assert len(names) == len(set(names))
    assert set(make.MEASURED) | set(make.WHY_NOT) <= set(names)
    for printed in tables:
        for row in printed["rows"]:
            assert len(row) == len(printed["labels"]) + len(printed["columns"])
    assert sum(1 for printed in tables for _ in make.printed_cells(printed)) > 400


def test_our_cells_are_cells_of_the_paper():
    for printed in make.paper_tables():
        if printed["name"] in make.MEASURED:
            there = {(labels, column) for labels, column, _ in make.printed_cells(printed)}
            found = make.MEASURED[printed["name"]](printed)
            assert found
            assert set(found) <= there


@pytest.mark.parametrize(
    ("printed", "unit", "correct", "verdict"),
    [
        ("90.5", "%", 900, "reproduced"),
        ("0.905", "accuracy 0 to 1", 900, "reproduced"),
        ("91.9", "%", 900, "reproduced"),
        ("95", "%", 900, "contradicted, lower here"),
        ("0.80", "accuracy 0 to 1", 900, "contradicted, higher here"),
    ],
)
def test_verdicts(printed, unit, correct, verdict):
    count = {"correct": correct, "n": 1000}
    ours = make.accuracy(printed, unit, count, "how")
    assert ours.verdict == verdict
    assert ours.figure == "90.0 [88.0, 91.7]"
    other = make.accuracy(printed, unit, count, "how", why_not="other data")
    assert (other.verdict, other.how) == ("not comparable", "how; other data")


def test_times_are_compared_as_ratios():
    (printed,) = [printed for printed in make.paper_tables() if printed["name"] == "000 Table 6"]
    found = make.times_of_table_6(printed)
    assert {labels for labels, _ in found} == {("10",), ("25",), ("50",)}
    assert all("times MALADE" in ours.figure for ours in found.values())
    assert "| 10 | 0.008 +- 0.003 | 0.043 +- 0.027; ours " in make.section(printed)
