"""What the demonstration prints and what it writes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastmalade.demo.timing import TimingRow
from fastmalade.demo.whitebox import WhiteboxRow
from fastmalade.evaluation import TransferRow, wilson_interval

HONEST = (
    "The accuracy under exact gradients is the honest robustness of this defence, for an attacker who knows of it "
    "differentiates through it; where another whitebox attack is stronger still, the worst of them is. The transfer "
    "figures only say what happens against an attacker who does not know of the defence."
)


def share(correct: int, n: int) -> str:
    """Accuracy with its 95% Wilson interval, in percent."""
    low, high = wilson_interval(correct, n)
    return f"{100 * correct / n:5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"


def attack_report(rows: Sequence[TransferRow]) -> Table:
    """The transfer table for people: accuracy bare and behind each purifier."""
    names = list(rows[0].correct)
    table = Table()
    table.add_column("attack")
    table.add_column("eps", justify="right")
    for name in names:
        table.add_column(f"{name} %", justify="right", no_wrap=True)
    for row in rows:
        epsilon = f"{row.epsilon:g}" if row.attack != "none" else ""
        table.add_row(row.attack, epsilon, *(share(row.correct[name], row.n) for name in names))
    return table


def whitebox_report(rows: Sequence[WhiteboxRow]) -> Table:
    """The whitebox block for people."""
    table = Table()
    table.add_column("attack")
    table.add_column("accuracy %", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.attack, share(row.correct, row.n))
    return table


def timing_report(rows: Sequence[TimingRow]) -> Table:
    """The timing table for people."""
    table = Table()
    for heading in ("batch", "repeats", "PyTorch eager", "native", "ratio of medians"):
        table.add_column(heading, justify="right")
    for row in rows:
        native = "-" if row.native_us is None else f"{row.native_us:.1f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        table.add_row(str(row.batch), str(row.repeats), f"{row.eager_us:.1f}", native, ratio)
    return table


def timing_doubt(rows: Sequence[TimingRow]) -> str | None:
    """A sentence for a machine that was doing other things too, or None where the calls agree."""
    worst = max(row.unsteadiness for row in rows)
    if worst < 1.5:
        return None
    return (
        f"The machine was busy or unsteady: a median call took up to {worst:.1f} times the fastest one. PyTorch's "
        "threads wait for each other and suffer more from that; repeat this on an idle machine."
    )


def as_json(
    attack_rows: Sequence[TransferRow],
    whitebox_rows: Sequence[WhiteboxRow],
    timing_rows: Sequence[TimingRow],
    *,
    whitebox_epsilon: float,
) -> dict[str, Any]:
    """The three tables as JSON values; accuracies as counts, fractions and 95% intervals."""
    return {
        "transfer": [
            {
                "attack": row.attack,
                "epsilon": row.epsilon,
                "n": row.n,
                **{name: _counted(correct, row.n) for name, correct in row.correct.items()},
            }
            for row in attack_rows
        ],
        "whitebox": [
            {"attack": row.attack, "epsilon": whitebox_epsilon, "n": row.n, **_counted(row.correct, row.n)}
            for row in whitebox_rows
        ],
        "timing": [
            {
                "batch": row.batch,
                "repeats": row.repeats,
                "eager_us_per_image": row.eager_us,
                "native_us_per_image": row.native_us,
                "eager_fastest_us_per_image": row.eager_fastest_us,
                "native_fastest_us_per_image": row.native_fastest_us,
                "ratio": row.ratio,
            }
            for row in timing_rows
        ],
    }


def _counted(correct: int, n: int) -> dict[str, Any]:
    return {"correct": correct, "accuracy": correct / n, "interval": list(wilson_interval(correct, n))}
