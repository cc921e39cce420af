"""Tables of ``fastmalade bench defenses``."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fastmalade.bench.defenses import ratios


def tables(result: dict[str, Any]) -> list[Table]:
    """One table of medians for each number of threads, or for the GPU, and one of ratios to the paper's."""
    found = []
    gpu = result.get("machine", {}).get("gpu")
    for threads in dict.fromkeys(cell["threads"] for cell in result["cells"]):
        cells = [cell for cell in result["cells"] if cell["threads"] == threads]
        columns = list(dict.fromkeys((cell["batch"], cell["steps"]) for cell in cells))
        on = gpu or f"{threads} thread{'s' if threads > 1 else ''}"
        title = f"microseconds per image on 1x28x28, medians, {on}"
        table = Table(title=title, min_width=len(title) + 4)
        table.add_column("defence", no_wrap=True)
        for batch, steps in columns:
            table.add_column(f"batch {batch}\nN=L={steps}", justify="right", no_wrap=True)
        for name in dict.fromkeys(cell["contender"] for cell in cells):
            own = {(cell["batch"], cell["steps"]): cell for cell in cells if cell["contender"] == name}
            table.add_row(name, *(_entry(own.get(column)) for column in columns))
        found.append(table)
    compared = ratios(result)
    if compared:
        table = Table(title="Defense-GAN (R = 1) : MALADE (own kernels), and on the paper's GPU (000 Table 6)")
        for heading in ("rival", "threads", "batch", "N = L", "ratio", "paper"):
            table.add_column(heading, justify="left" if heading == "rival" else "right", no_wrap=True)
        for row in compared:
            paper = "" if row["paper"] is None else f"{row['paper']:.1f}"
            counts = (str(row[name]) for name in ("threads", "batch", "steps"))
            table.add_row(row["rival"], *counts, f"{row['ratio']:.1f}", paper)
        found.append(table)
    return found


def remarks(result: dict[str, Any]) -> list[str]:
    """Warnings, failures, and forms that were refused, each with its reason."""
    lines = [f"warning: {warning}" for warning in result["warnings"]]
    for failure in result["failures"]:
        lines.append("failed: {contender}, batch {batch}, N=L={steps}: {error}".format(**failure))
    refused = {(c["contender"], way): why for c in result["cells"] for way, why in c["refused"].items()}
    return lines + [f"not tried: {contender} as {way}: {why}" for (contender, way), why in refused.items()]


def _entry(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    figures = cell["us_per_image"]
    # A single call has no spread; it is marked.
    return f"{figures['median']:,.0f}" + ("*" if figures["repetitions"] == 1 else "")
