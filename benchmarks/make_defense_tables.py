"""Write the tables of rival defences into docs/defenses.md from committed results.

    python benchmarks/make_defense_tables.py            # rewrites them
    python benchmarks/make_defense_tables.py --check    # only says whether they are up to date

Times come from ``fastmalade bench defenses --output benchmarks/results/bench-defenses.json``, accuracy from
``python benchmarks/evaluate_defenses.py`` and ``python benchmarks/evaluate_substitutes.py``. Blocks stand between
``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``: ``rivals``, ``defense-times``, ``defense-accuracy`` and
``substitute-attacks``; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blocks import ROOT, renew, replaced, table
from defense_runs import accuracy_table, substitute_table

from fastmalade.bench.defenses import ratios

TIMES = Path("benchmarks/results/bench-defenses.json")
ACCURACY = Path("benchmarks/results/defenses-accuracy.json")
SUBSTITUTES = Path("benchmarks/results/substitutes.json")
# Row of the first table: its contender in the timing run and its defence in the accuracy run.
ROWS = (
    ("MALADE, native", "malade native", "malade"),
    ("MALADE, PyTorch eager", "malade eager", None),
    ("MagNet", "magnet", "magnet"),
    ("Defense-GAN, R = 1", "defense-gan R=1", None),
    ("Defense-GAN, R = 10", "defense-gan R=10", "defense-gan"),
    ("Defense-GAN, R = 10, published width", "defense-gan width 64 R=10", None),
    ("INC", "inc", "inc"),
    ("autoencode-and-classify", None, "autoencode"),
    ("DIP-INC", "dip-inc", "dip-inc"),
    ("APuDAE, variant E", "apudae", "apudae-E"),
)
COLUMNS = (
    ("clean", "clean"),
    ("PGD on the bare classifier", "pgd 0.3"),
    ("BPDA", "pgd 0.3 bpda"),
    ("exact gradient", "pgd 0.3 unrolled"),
)
THREADS, BATCH = 1, 64


def rivals(times: dict[str, Any], accuracy: dict[str, Any]) -> str:
    """The first table: microseconds per image beside accuracy in percent."""
    medians = _medians(times)
    steps = times["settings"]["steps"]
    head = ["defence", *(f"N = L = {n}, us" for n in steps), *(f"{title}, %" for title, _ in COLUMNS)]
    lines = []
    for title, timed, judged in ROWS:
        entries = accuracy["results"].get(judged, {})
        lines.append(
            [
                title,
                *(_time(medians.get((timed, THREADS, BATCH, n))) for n in steps),
                *(_share(entries.get(column)) for _, column in COLUMNS),
            ]
        )
    return table(head, lines)


def time_tables(times: dict[str, Any]) -> str:
    """One table of medians for each number of threads, and the ratios to the paper's."""
    medians = _medians(times)
    parts = []
    for threads in times["settings"]["threads"]:
        columns = list(dict.fromkeys((b, n) for _, t, b, n in medians if t == threads))
        head = [f"us per image, {threads} core{'s' if threads > 1 else ''}", *(f"B={b}, N=L={n}" for b, n in columns)]
        names = dict.fromkeys(name for name, t, _, _ in medians if t == threads)
        lines = [[name, *(_time(medians.get((name, threads, b, n))) for b, n in columns)] for name in names]
        parts.append(table(head, lines))
    head = ["Defense-GAN, R = 1 : MALADE, native", "cores", "batch", "N = L", "ratio", "000 Table 6"]
    lines = [
        [
            "shipped generator" if row["rival"] == "defense-gan R=1" else "published width",
            *(str(row[key]) for key in ("threads", "batch", "steps")),
            f"{row['ratio']:.0f}",
            "" if row["paper"] is None else f"{row['paper']:.1f}",
        ]
        for row in ratios(times)
    ]
    parts.append(table(head, lines))
    notes = [
        f"Medians, from `{TIMES.as_posix()}`; one call only where marked *: {times['machine']['processor']}, "
        f"torch {times['versions']['torch']}, commit {times['commit']['id'][:12]}.",
        *(f"Warning of the run: {warning}." for warning in times["warnings"]),
    ]
    return "\n\n".join([*parts, " ".join(notes)])


def _medians(times: dict[str, Any]) -> dict[tuple[str, int, int, int], tuple[float, bool]]:
    """(contender, threads, batch, steps) -> median, and whether it stands for one call alone."""
    return {
        (cell["contender"], cell["threads"], cell["batch"], cell["steps"]): (
            cell["us_per_image"]["median"],
            cell["us_per_image"]["repetitions"] == 1,
        )
        for cell in times["cells"]
    }


def _time(found: tuple[float, bool] | None) -> str:
    return "" if found is None else f"{found[0]:,.0f}{'*' if found[1] else ''}"


def _share(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    among = "" if entry["n"] == 1000 else f" of {entry['n']}"
    return f"{100 * entry['correct'] / entry['n']:.1f}{among}"


def pages(times: dict[str, Any], accuracy: dict[str, Any], substitutes: dict[str, Any]) -> dict[Path, str]:
    """File -> its text with the blocks renewed."""
    docs = ROOT / "docs" / "defenses.md"
    text = docs.read_text(encoding="utf-8")
    for name, block in (
        ("rivals", rivals(times, accuracy)),
        ("defense-times", time_tables(times)),
        ("defense-accuracy", accuracy_table(accuracy["results"])),
        ("substitute-attacks", substitute_table(substitutes["results"])),
    ):
        text = replaced(text, block, f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
    return {docs: text}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    options = parser.parse_args(arguments)
    results = [json.loads((ROOT / path).read_text(encoding="utf-8")) for path in (TIMES, ACCURACY, SUBSTITUTES)]
    return renew(pages(*results), "benchmarks/make_defense_tables.py", check=options.check)


if __name__ == "__main__":
    sys.exit(main())
