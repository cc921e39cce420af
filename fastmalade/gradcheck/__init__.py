"""Whether a gradient is the derivative of what is deployed."""

from __future__ import annotations

from fastmalade.gradcheck.check import check_gradient
from fastmalade.gradcheck.report import GradientReport

__all__ = ["GradientReport", "check_gradient"]
