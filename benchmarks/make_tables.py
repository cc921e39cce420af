"""Write README's table of speed from a result of ``fastmalade bench``.

    python benchmarks/make_tables.py benchmarks/results/bench-cpu.json            # rewrites README.md
    python benchmarks/make_tables.py benchmarks/results/bench-cpu.json --check    # only says whether it is up to date

The table goes between the lines ``<!-- bench:begin -->`` and ``<!-- bench:end -->``, that of a run with ``--gradient``
between ``<!-- gradient:begin -->`` and ``<!-- gradient:end -->``; nothing else is touched.
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


def sources_of(text: str) -> list[str]:
    """The results that the blocks in ``text`` say they were made from."""
    parts = text.split("medians, from `")[1:]
    return [part.split("`")[0] for part in parts]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON file of fastmalade bench")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is out of date")
    options = parser.parse_args(arguments)
    result = json.loads(options.result.read_text(encoding="utf-8"))
    path = options.result.resolve()
    source = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    text = replaced(options.readme.read_text(encoding="utf-8"), markdown(result, source), *marks(result))
    return renew({options.readme: text}, f"benchmarks/make_tables.py {source}", check=options.check)


if __name__ == "__main__":
    sys.exit(main())
