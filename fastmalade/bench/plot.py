"""Microseconds per image against batch size, all contenders, both axes logarithmic."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastmalade.bench.report import grids
from fastmalade.files import write_bytes

MARKERS = "osD^vP*X<>hd"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture (PNG, SVG or PDF by suffix) with one panel for each shape and number of steps; needs matplotlib.

    Raises:
        ValueError: a result without a timed cell, or a suffix that matplotlib cannot write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = grids(result)
    if not any("us_per_image" in cell for cell in result["cells"]):
        raise ValueError("plot: expected at least one timed cell, got none")
    figure = Figure(figsize=(3.2 + 6.5 * len(panels), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    keys = list(result["contenders"])
    threads = f"{result['settings']['threads']} thread{'s' if result['settings']['threads'] > 1 else ''}"
    for index, grid in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for key in grid.contenders:
            points = [(batch, median) for batch in grid.batches if (median := grid.median(key, batch)) is not None]
            if not points:
                continue
            rank = keys.index(key)
            described = result["contenders"][key]
            axes.plot(
                [batch for batch, _ in points],
                [median for _, median in points],
                marker=MARKERS[rank % len(MARKERS)],
                markersize=6,
                linewidth=1.4 if described["peer"] else 3.0,
                linestyle="--" if described["rewritten"] else "-",
                color="black" if rank == 0 else f"C{(rank - 1) % 10}",
                label=grid.label(key),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(grid.batches, [str(batch) for batch in grid.batches])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        ticks = [m * 10.0**e for e in range(-1, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("images per call")
        axes.set_ylabel("microseconds per image")
        kind = "gradient" if result["settings"]["gradient"] else "forward"
        axes.set_title(f"{grid.shape}, N={grid.steps}, {kind}, {threads}")
        axes.grid(True, which="major", alpha=0.3)
    # A contender may be missing in some panels.
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(
        handles=list(lines.values()), labels=list(lines), loc="outside right upper", fontsize=9, handlelength=3.5
    )
    figure.supxlabel(result["machine"]["processor"], fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format=path.suffix.removeprefix(".") or None)
    write_bytes(path, content.getbuffer())
