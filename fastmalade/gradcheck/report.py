"""The findings of :func:`fastmalade.check_gradient`, as values and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["PASS", "FAIL", "INFO"]


@dataclass(frozen=True)
class GradientCheck:
    """One line of a report.

    Attributes:
        name: what was checked.
        status: "PASS", "FAIL", or "INFO" for a finding that is neither right nor wrong.
        value: the figure measured, or None.
        limit: the largest value that passes, or None.
        detail: what the figure means here.
    """

    name: str
    status: Status
    value: float | None
    limit: float | None
    detail: str


@dataclass(frozen=True)
class GradientReport:
    """Result of :func:`check_gradient`; ``str`` gives a table.

    Attributes:
        model: name of the type that was checked.
        shape: shape of the images (B, C, H, W).
        checks: one entry per check.
    """

    model: str
    shape: tuple[int, ...]
    checks: tuple[GradientCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "FAIL" for check in self.checks)

    def __getitem__(self, name: str) -> GradientCheck:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"expected one of {', '.join(c.name for c in self.checks)}, got {name!r}")

    def __str__(self) -> str:
        rows = [("check", "result", "value", "limit", "")]
        rows += [(c.name, c.status, _figure(c.value), _figure(c.limit), c.detail) for c in self.checks]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join((*(row[i].ljust(widths[i]) for i in range(4)), row[4])).rstrip() for row in rows]
        verdict = "PASS" if self.passed else "FAIL"
        return "\n".join([f"gradient of {self.model} at images {self.shape}: {verdict}", *lines])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
