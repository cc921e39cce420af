"""The progress bar of everything that takes long, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def progress_bar(*more: ProgressColumn, enabled: bool = True, transient: bool = False) -> Progress:
    """Description, bar, count, time spent and time left, then ``more`` columns.

    Args:
        more: columns added at the right.
        enabled: show it at all.
        transient: take it away when it is done.
    """
    # Imported here: purification shows no bar, and should not pay for one.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
    )
    return Progress(*columns, console=Console(stderr=True), disable=not enabled, transient=transient)
