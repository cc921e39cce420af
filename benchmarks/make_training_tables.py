"""Write the tables and the plot of docs/training.md from committed results.

    python benchmarks/make_training_tables.py            # rewrites them
    python benchmarks/make_training_tables.py --check    # only says whether the tables are up to date

Results come from ``benchmarks/sweep_supervision.py``, ``benchmarks/evaluate_shipped.py`` and
``benchmarks/time_training.py``. Blocks stand between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``:
``supervision``, ``robustness`` and ``training-time``; nothing else is touched. What has not been measured yet is an
empty cell.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from blocks import ROOT, renew, replaced, table

from fastmalade.evaluation import wilson_interval
from fastmalade.files import replacing

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "training.md"
PLOT = ROOT / "docs" / "images" / "supervision.png"
PANELS = {
    "transferred": "attacks on the bare classifier", "bpda": "BPDA, eps 0.3", "exact": "exact gradient, eps 0.3",
}  # fmt: skip
LAMBDAS, SIGMA2 = (0.0, 1.0, 10.0, 100.0, 784.0), (0.07, 0.15, 0.3)
ROBUSTNESS = (
    ("clean", ("clean",)),
    ("transferred PGD 0.2", ("transferred", "pgd 0.2")),
    ("PGD 0.3", ("transferred", "pgd 0.3")),
    ("FGSM 0.3", ("transferred", "fgsm 0.3")),
    ("BPDA", ("bpda",)),
    ("exact", ("exact",)),
    ("known noise", ("known noise",)),
    ("no noise", ("no noise",)),
    ("AutoAttack", ("autoattack",)),
    ("Square", ("square",)),
    ("exact, eps 0.4", ("exact eps 0.4",)),
    ("exact, L2 4", ("exact l2 4",)),
)


def read(name: str) -> dict[str, Any]:
    """A file of results; empty where there is none yet."""
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def supervision(cells: dict[str, Any]) -> str:
    """One line for each sigma^2 and start, one column for each lambda: transferred / BPDA / exact (clean), in %."""
    lines = []
    for start in ("dae", "scratch"):
        for sigma2 in SIGMA2:
            line = [f"{sigma2:g}, {'from a DAE' if start == 'dae' else 'from scratch'}"]
            for lam in LAMBDAS:
                cell = cells.get(f"lambda={lam:g} sigma2={sigma2:g} start={start} seed=0")
                line.append("" if cell is None else _cell(cell))
            if any(line[1:]):
                lines.append(line)
    return table(["sigma^2", *(f"lambda = {lam:g}" for lam in LAMBDAS)], lines)


def _cell(cell: dict[str, Any]) -> str:
    bpda, exact = (100 * cell[name]["majority_correct"] / cell[name]["n"] for name in ("bpda", "exact"))
    clean = 100 * cell["correct"]["clean"] / cell["n"]
    return f"{100 * cell['transferred']:.1f} / {bpda:.1f} / {exact:.1f} ({clean:.1f})"


def robustness(pairs: dict[str, Any]) -> str:
    """One line for each pair: percent right with the 95% interval."""
    columns = [(title, path) for title, path in ROBUSTNESS if any(_look_up(pair, path) for pair in pairs.values())]
    lines = [[name, *(_share(_look_up(pair, path)) for _, path in columns)] for name, pair in pairs.items()]
    return table(["pair", *(title for title, _ in columns)], lines)


def _look_up(pair: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    found: Any = pair
    for name in path:
        found = None if found is None else found.get(name)
    return found  # type: ignore[no-any-return]


def _share(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    low, high = (100 * bound for bound in wilson_interval(entry["correct"], entry["n"]))
    count = "" if entry["n"] in (1000, 10000) else f", n = {entry['n']}"
    return f"{100 * entry['correct'] / entry['n']:.1f} [{low:.1f}, {high:.1f}{count}]"


def times(results: dict[str, Any]) -> str:
    """One line for each comparison: milliseconds an image and the ratio."""
    lines = [
        [name, f"{row['ms_per_image']['fastmalade']:.2f}", f"{row['ms_per_image']['eager']:.2f}",
         f"{row['ratio']:.1f}x [{row['quartiles'][0]:.1f}, {row['quartiles'][1]:.1f}]"]
        for name, row in results.items() if isinstance(row, dict) and "ratio" in row
    ]  # fmt: skip
    return table(["ms an image, one thread", "fastmalade", "eager PyTorch", "ratio"], lines)


def draw(cells: dict[str, Any], path: Path) -> None:
    """Accuracy over lambda, transferred and exact, with 95% intervals: docs/images/supervision.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    for panel, what in zip(panels, ("transferred", "bpda", "exact"), strict=True):
        for sigma2, colour in zip(SIGMA2, ("#1b6ca8", "#d1495b", "#5c946e"), strict=True):
            points = []
            for place, lam in enumerate(LAMBDAS):
                cell = cells.get(f"lambda={lam:g} sigma2={sigma2:g} start=dae seed=0")
                if cell is None:
                    continue
                if what != "transferred":
                    correct, n = cell[what]["majority_correct"], cell[what]["n"]
                else:
                    n = 3 * cell["n"]
                    correct = round(cell["transferred"] * n)
                points.append((place, 100 * correct / n, *(100 * b for b in wilson_interval(correct, n))))
            if points:
                places, shares, lows, highs = zip(*points, strict=True)
                errors = ([s - low for s, low in zip(shares, lows, strict=True)],
                          [high - s for s, high in zip(shares, highs, strict=True)])  # fmt: skip
                panel.errorbar(places, shares, errors, marker="o", capsize=3, color=colour, label=f"{sigma2:g}")
        panel.set_xticks(range(len(LAMBDAS)), ["0\n(MALA)", *(f"{lam:g}" for lam in LAMBDAS[1:])])
        panel.set_xlabel("weight of the supervised term, lambda")
        panel.set_title(PANELS[what], fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, % of validation digits")
    panels[0].legend(title="sigma^2", fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    cells = read("supervision.json")
    blocks = {
        "supervision": supervision(cells),
        "robustness": robustness(read("robustness.json")),
        "training-time": times(read("training-time.json")),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = replaced(text, block, f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
    if cells and not arguments.check:
        draw(cells, PLOT)
    return renew({PAGE: text}, "benchmarks/make_training_tables.py", check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
