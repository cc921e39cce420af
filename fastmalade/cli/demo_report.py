"""What the demonstration prints about speed, its last sentence, and its figures as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastmalade.bench.report import Grid
from fastmalade.evaluation import TransferRow, WhiteboxRow, wilson_interval

_SIDES = ("eager", "native")


def timing_table(grid: Grid) -> Table:
    """Microseconds per image of both sides, a row for each batch size."""
    table = Table()
    for heading in ("batch", "calls", "PyTorch eager", "native", "ratio of medians"):
        table.add_column(heading, justify="right")
    for row in timing_json(grid):
        medians = (row[f"{side}_us_per_image"] for side in _SIDES)
        times = ("-" if median is None else f"{median:.1f}" for median in medians)
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}x"
        table.add_row(str(row["batch"]), str(row["repeats"]), *times, ratio)
    return table


def timing_json(grid: Grid) -> list[dict[str, Any]]:
    """The same as JSON values; None for a side that was not timed. ``repeats`` is of the side called less often."""
    rows = []
    for batch in grid.batches:
        cells = {side: (grid.cell(side, batch) or {}).get("us_per_image") for side in _SIDES}
        timed = [cell for cell in cells.values() if cell is not None]
        row: dict[str, Any] = {"batch": batch, "repeats": min((cell["repetitions"] for cell in timed), default=0)}
        for name, key in (("", "median"), ("_fastest", "fastest")):
            for side, cell in cells.items():
                row[f"{side}{name}_us_per_image"] = None if cell is None else cell[key]
        rows.append({**row, "ratio": grid.ratio("native", batch)})
    return rows


def transfer_json(rows: Sequence[TransferRow]) -> list[dict[str, Any]]:
    """Counts, fractions and 95% intervals, a column for each way to classify."""
    return [
        {
            "attack": row.attack,
            "epsilon": row.epsilon,
            "n": row.n,
            **{name: _counted(correct, row.n) for name, correct in row.correct.items()},
        }
        for row in rows
    ]


def whitebox_json(rows: Sequence[WhiteboxRow], epsilon: float) -> list[dict[str, Any]]:
    """Rows as ``fastmalade attack`` writes them, with the 95% interval of the majority."""
    return [
        {**row.to_json(), "epsilon": epsilon, "interval": list(wilson_interval(row.majority_correct, row.n))}
        for row in rows
    ]


def machine() -> dict[str, Any]:
    """Threads, instruction set (or why there is none) and version of torch."""
    import torch

    from fastmalade import backends

    reason = backends.available()["cpu"]
    isa = backends.cpu.calls.isa_in_use() if reason is None else None
    return {"threads": torch.get_num_threads(), "isa": isa, "reason": reason, "torch": torch.__version__}


def summary(
    transferred: TransferRow, whitebox: Sequence[WhiteboxRow], robust: Sequence[WhiteboxRow], grid: Grid
) -> str:
    """One sentence that says what was shown.

    Args:
        transferred: of the strongest attack on the bare classifier.
        whitebox, robust: rows of the attacks through MALADE and through the purifier trained under attack.
        grid: times.
    """
    bare, purified = (100 * transferred.correct[name] / transferred.n for name in ("bare", "MALADE"))
    least_right = (min(rows, key=lambda row: row.majority_correct) for rows in (whitebox, robust))
    left, left_robust = (100 * row.majority_correct / row.n for row in least_right)
    ratios = [ratio for batch in grid.batches if (ratio := grid.ratio("native", batch)) is not None]
    speed = ""
    if ratios:
        least, most = f"{min(ratios):.0f}", f"{max(ratios):.0f}"
        times = least if least == most else f"{least} to {most}"
        speed = f"; MALADE's native chain is {times} times as fast as PyTorch eager"
    return (
        f"Shown: under {transferred.attack} at eps {transferred.epsilon:g} the classifier gets {bare:.0f}% of the "
        f"digits right bare and {purified:.0f}% behind MALADE; an attack that knows the purifier leaves {left:.0f}% "
        f"behind MALADE and {left_robust:.0f}% behind the one trained under attack{speed}."
    )


def _counted(correct: int, n: int) -> dict[str, Any]:
    return {"correct": correct, "accuracy": correct / n, "interval": list(wilson_interval(correct, n))}
