"""Evaluations that can be believed: suites of attacks, checks of the evaluation itself, a verdict."""

from __future__ import annotations

from fastmalade.suites.merge import merge_reports
from fastmalade.suites.report import Check, EvaluationReport, Row
from fastmalade.suites.run import evaluate
from fastmalade.suites.suite import AttackSpec, BinarizationSpec, SquareSpec, Suite, load_suite, shipped_suites

__all__ = [
    "AttackSpec",
    "BinarizationSpec",
    "Check",
    "EvaluationReport",
    "Row",
    "SquareSpec",
    "Suite",
    "evaluate",
    "load_suite",
    "merge_reports",
    "shipped_suites",
]
