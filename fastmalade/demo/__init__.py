"""The demonstration behind ``fastmalade demo``: attacks, whitebox attacks, timing, figure, report."""

from __future__ import annotations

from fastmalade.demo.attack_table import AttackTable, attack_table
from fastmalade.demo.figure import Walk, choose_digits, draw_figure, walk
from fastmalade.demo.timing import TimingRow, timing_table
from fastmalade.demo.whitebox import WhiteboxRow, whitebox_table

__all__ = [
    "AttackTable",
    "TimingRow",
    "Walk",
    "WhiteboxRow",
    "attack_table",
    "choose_digits",
    "draw_figure",
    "timing_table",
    "walk",
    "whitebox_table",
]
