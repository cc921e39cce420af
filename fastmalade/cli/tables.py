"""Tables that the commands print: accuracy under transferred attacks, and under attacks that know the defence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fastmalade.attacks.cost import GradientCost
    from fastmalade.evaluation import Certificate, TransferRow, WhiteboxRow


def wide_console(width: int) -> Console:
    """Standard output as wide as its terminal; without one ``width`` columns, as rich's 80 would fold the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def transfer_table(rows: Sequence[TransferRow], title: str | None = None, *, digits: int = 1) -> Table:
    """Accuracy bare and behind each purifier, in percent with 95% intervals.

    Args:
        rows: at least one.
        title: printed above.
        digits: decimals.
    """
    from fastmalade.evaluation import percent

    names = list(rows[0].correct)
    table = _table(title, ("attack", "eps", *names))
    for row in rows:
        cells = [percent(row.correct[name], row.n, digits, "%") for name in names]
        table.add_row(row.attack, f"{row.epsilon:g}", *cells)
    return table


def whitebox_table(
    rows: Sequence[WhiteboxRow], title: str | None = None, *, costs: Mapping[str, GradientCost] | None = None
) -> Table:
    """Accuracy under each attack through the defence, and what the attack took.

    Args:
        rows: at least one.
        title: printed above.
        costs: where the time of a gradient goes, by attack; adds the classifier's share as a column.
    """
    from fastmalade.evaluation import percent

    headings = ["attack", "accuracy, %", "majority, %", "cosine", "gradients", "seconds"]
    table = _table(title, headings if costs is None else [*headings, "classifier, %"])
    for row in rows:
        cells = [
            _figure(row.accuracy_per_query, 100, 1),
            percent(row.majority_correct, row.n),
            _figure(row.cosine, 1, 2),
            _figure(row.gradients_per_image, 1, 0),
            _figure(row.seconds, 1, 1),
        ]
        if costs is not None:
            cost = costs.get(row.attack)
            cells.append(_figure(None if cost is None else cost.classifier_share, 100, 0))
        table.add_row(row.attack, *cells)
    return table


def certified_table(certificate: Certificate, radii: Sequence[float], pixels: int, title: str) -> Table:
    """Certified accuracy at each radius, in percent with 95% intervals, and the same radius in Linf.

    Args:
        certificate: with labels.
        radii: L2 radii.
        pixels: C H W of the images, for the radius in Linf.
        title: printed above.
    """
    from fastmalade.evaluation import percent

    table = _table(title, ["L2 radius", "Linf radius", "certified, %"])
    n = len(certificate.radius)
    for radius in radii:
        correct = int(certificate.right_at(radius).sum())
        table.add_row(f"{radius:g}", f"{radius / math.sqrt(pixels):.4f}", percent(correct, n))
    abstained = int((certificate.prediction < 0).sum())
    table.caption = f"abstained from {abstained} of {n}; {certificate.seconds:.0f} s"
    return table


def _table(title: str | None, headings: Sequence[str]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "attack" else "right", no_wrap=True)
    return table


def _figure(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"
