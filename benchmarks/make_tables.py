"""Write the tables of speed in docs/performance.md and README.md from a result of ``fastmalade bench``.

    python benchmarks/make_tables.py benchmarks/results/bench-cpu.json            # rewrites both
    python benchmarks/make_tables.py benchmarks/results/bench-cpu.json --check    # says whether they are up to date

docs/performance.md gets everything that a run says about itself, between the lines ``<!-- bench:begin -->`` and
``<!-- bench:end -->``, or ``<!-- gradient:begin -->`` and ``<!-- gradient:end -->`` for a run with ``--gradient``.
README.md gets the table of a forward run alone, between ``<!-- speed:begin -->`` and ``<!-- speed:end -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blocks import ROOT, renew, replaced, table

from fastmalade.bench.report import grids, notes, rows


def marks(result: dict[str, Any]) -> tuple[str, str]:
    """The lines around the block of this kind of result."""
    name = "gradient" if result["settings"]["gradient"] else "bench"
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def markdown(result: dict[str, Any], source: str) -> str:
    """The block between the marks: a table for each shape and number of steps, and what they were measured on.

    Args:
        result: of ``fastmalade bench``.
        source: name of its file, printed below the table.
    """
    parts = [
        table([f"{grid.shape}, N={grid.steps}, batch", *map(str, grid.batches)], rows(grid)) for grid in grids(result)
    ]
    lines = [f"- {line}" for line in notes(result)]
    parts.append("\n".join([f"Microseconds per image, medians, from `{source}`:", "", *lines]))
    return "\n\n".join(parts)


def short(result: dict[str, Any], source: str) -> str:
    """README's block: the table without the machine's ceilings, and where the rest is."""
    (grid,) = grids(result)
    kept = [row for row in rows(grid) if "ceiling" not in row[0]]
    settings, facts = result["settings"], result["machine"]
    conditions = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}, {facts['processor']}"
    return (
        table([f"{grid.shape}, N={grid.steps}, batch", *map(str, grid.batches)], kept)
        + f"\n\nMicroseconds per image, medians, noise included; {conditions}; from `{source}`."
    )


def sources_of(text: str) -> list[str]:
    """The results that the blocks in ``text`` say they were made from."""
    parts = text.split("medians, from `")[1:]
    return [part.split("`")[0] for part in parts]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON file of fastmalade bench")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    options = parser.parse_args(arguments)
    result = json.loads(options.result.read_text(encoding="utf-8"))
    path = options.result.resolve()
    source = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    pages = pages_with(result, source, options.root)
    return renew(pages, f"benchmarks/make_tables.py {source}", check=options.check)


def pages_with(result: dict[str, Any], source: str, root: Path = ROOT) -> dict[Path, str]:
    """File -> its text with the blocks of this result renewed."""
    performance, readme = root / "docs" / "performance.md", root / "README.md"
    found = {performance: replaced(performance.read_text(encoding="utf-8"), markdown(result, source), *marks(result))}
    if not result["settings"]["gradient"]:
        text, block = readme.read_text(encoding="utf-8"), short(result, source)
        found[readme] = replaced(text, block, "<!-- speed:begin -->", "<!-- speed:end -->")
    return found


if __name__ == "__main__":
    sys.exit(main())
