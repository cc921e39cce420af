"""MALADE and the rival defences on a GPU: the part of ``fastmalade bench defenses --device cuda`` that fits a minute.

Run by tools/gpu_check.py; ``python benchmarks/gpu_defenses.py FILE --seconds 35`` runs it alone. N = L = 10, batches 1
and 64, every rival eager, channels-last and as CUDA graphs. ``torch.compile`` is left out, because compiling eight
networks takes longer than everything else together. The command has it, and more steps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def as_table(result: dict[str, Any]) -> str:
    """Markdown: microseconds per image and the form that was fastest, ratios to the paper's, then all remarks."""
    from fastmalade.bench.defense_report import remarks
    from fastmalade.bench.defenses import ratios

    lines = ["| defence | batch | N = L | us per image | form |", "|---|---|---|---|---|"]
    for c in result["cells"]:
        figures = (
            c["contender"],
            c["batch"],
            c["steps"],
            f"{c['us_per_image']['median']:.2f}",
            c["form"] or "launches",
        )
        lines.append(f"| {' | '.join(map(str, figures))} |")
    compared = ratios(result)
    if compared:
        lines += ["", "| rival : MALADE | batch | N = L | ratio | paper |", "|---|---|---|---|---|"]
    for row in compared:
        paper = "" if row["paper"] is None else f"{row['paper']:.1f}"
        lines.append(f"| {row['rival']} | {row['batch']} | {row['steps']} | {row['ratio']:.1f} | {paper} |")
    return "\n".join([*lines, *(f"\n{line}" for line in remarks(result))])


def main() -> int:
    """Writes the result after every cell; exit status 1 where a defence failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=35.0, help="begin no cell after so many")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from fastmalade.bench.defenses import DefenseSettings, run

    settings = DefenseSettings(
        batches=(1, 64), steps=(10,), seconds=0.1, compiled=False, device="cuda", limit=arguments.seconds
    )
    result = run(settings, output=arguments.output, report=lambda what, _: print(what, flush=True))
    print(as_table(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
