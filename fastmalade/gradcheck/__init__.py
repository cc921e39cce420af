"""Checks whether the gradient of a defence is its derivative."""

from __future__ import annotations

from fastmalade.gradcheck.check import check_gradient
from fastmalade.gradcheck.report import GradientReport

__all__ = ["GradientReport", "check_gradient"]
