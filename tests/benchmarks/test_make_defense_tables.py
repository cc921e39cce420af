"""benchmarks/make_defense_tables.py: what the tables say, and that the committed ones are those it makes."""

from __future__ import annotations

import make_defense_tables as make
import pytest


def cell(name, steps, median, *, threads=1, batch=64, repetitions=5):
    summary = {"median": median, "repetitions": repetitions}
    return {"contender": name, "threads": threads, "batch": batch, "steps": steps, "us_per_image": summary}


@pytest.fixture
def times():
    return {
        "settings": {"steps": [10, 25], "threads": [1, 2]},
        "machine": {"processor": "a processor"},
        "versions": {"torch": "2.0"},
        "commit": {"id": "0123456789abcdef"},
        "warnings": ["the load average was 3"],
        "cells": [
            cell("malade native", 10, 100.0),
            cell("malade native", 10, 50.0, threads=2),
            cell("defense-gan R=1", 10, 12345.6, repetitions=1),
            cell("defense-gan R=1", 200, 99.4),
        ],
    }


def test_rivals_table(times):
    accuracy = {"results": {"malade": {"clean": {"correct": 990, "n": 1000}, "pgd 0.3": {"correct": 5, "n": 10}}}}
    lines = make.rivals(times, accuracy).splitlines()
    assert lines[0].startswith(
        "| defence | N = L = 10, us | N = L = 25, us | clean, % | PGD on the bare classifier, % |"
    )
    assert lines[2] == "| MALADE, native | 100 |  | 99.0 | 50.0 of 10 |  |  |"
    assert "| Defense-GAN, R = 1 | 12,346* |  |  |  |  |  |" in lines


def test_time_tables(times):
    text = make.time_tables(times)
    assert "| us per image, 1 core | B=64, N=L=10 | B=64, N=L=200 |" in text
    assert "| us per image, 2 cores | B=64, N=L=10 |" in text
    assert "| shipped generator | 1 | 64 | 10 | 123 | 5.4 |" in text
    assert "commit 0123456789ab. Warning of the run: the load average was 3." in text


def test_the_committed_tables_are_those_that_the_command_makes():
    assert make.main(["--check"]) == 0
