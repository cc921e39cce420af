"""The progress bar of everything that takes long, on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(*more: ProgressColumn, enabled: bool = True, transient: bool = False) -> Progress:
    """Description, bar, count, time spent and time left, then ``more`` columns.

    Args:
        more: columns added at the right.
        enabled: show it at all.
        transient: take it away when it is done.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
    )
    return Progress(*columns, console=Console(stderr=True), disable=not enabled, transient=transient)
