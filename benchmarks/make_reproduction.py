"""Write docs/reproduction.md: every cell of the papers' tables beside what was measured here.

    python benchmarks/make_reproduction.py            # rewrites the page
    python benchmarks/make_reproduction.py --check    # only says whether it is up to date

The papers' tables are in ``benchmarks/papers/*.toml``, the page's head in ``head.md`` there, our figures in
``benchmarks/results``. A figure of ours beside one of theirs was made under the same knowledge of the attacker, or the
page says how it differs and gives no verdict. Verdicts of accuracies: "reproduced" where the printed one lies in our
95% interval or within two points of our figure, "contradicted" where it does not; of times, whose ratios alone are
compared: within a quarter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blocks import ROOT, renew, table

from fastmalade.evaluation import wilson_interval

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RESULTS = ROOT / "benchmarks" / "results"
PAPERS = ROOT / "benchmarks" / "papers"
PAGE = ROOT / "docs" / "reproduction.md"
POINTS, RATIO = 2.0, 0.25

WHY_NOT = {
    "000 Table 4": "CIFAR-10 is not there yet.",
    "001 Table 3": "CIFAR-10 is not there yet.",
    "001 Table 4": "TinyImageNet is not there.",
    "003 Table 3": "CIFAR-10 is not there yet.",
    "003 Table 4": "ImageNet is not there yet.",
    "004 Table 1": "CelebA is not there.",
    "004 Table 2": "ImageNet is not there yet.",
}
"""Tables of which nothing can be measured yet, and why."""


@dataclass(frozen=True)
class Ours:
    """A measured cell.

    Attributes:
        figure: ours, as text with its interval.
        verdict: "reproduced", "contradicted" with the direction, or "not comparable".
        how: what the attacker knew here, what was attacked, how it was judged, and by which command.
    """

    figure: str
    verdict: str
    how: str


Cells = dict[tuple[tuple[str, ...], str], Ours]


def accuracy(printed: str, unit: str, count: dict[str, int], how: str, *, why_not: str | None = None) -> Ours:
    """Our accuracy beside a printed one; ``why_not`` says why they cannot be compared."""
    correct, n = count["correct"], count["n"]
    low, high = (100 * bound for bound in wilson_interval(correct, n))
    share, paper = 100 * correct / n, float(printed) * (1 if unit == "%" else 100)
    figure = f"{share:.1f} [{low:.1f}, {high:.1f}]"
    if why_not is not None:
        return Ours(figure, "not comparable", f"{how}; {why_not}")
    if low <= paper <= high or abs(paper - share) <= POINTS:
        return Ours(figure, "reproduced", how)
    return Ours(figure, f"contradicted, {'higher' if share > paper else 'lower'} here", how)


def read(name: str) -> Any:
    """A file of results; an empty one where there is none yet."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else {}


def paper_tables() -> Iterator[dict[str, Any]]:
    """The papers' tables in order; numbers stay text, as they are printed."""
    for path in sorted(PAPERS.glob("*.toml")):
        yield from tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)["table"]


def printed_cells(printed: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Labels, column and value of each cell that the paper prints."""
    width = len(printed["labels"])
    for row in printed["rows"]:
        for column, value in zip(printed["columns"], row[width:], strict=True):
            if value not in ("-", "unreadable"):
                yield tuple(str(label) for label in row[:width]), column, str(value)


def times_of_table_6(printed: dict[str, Any]) -> Cells:
    """000 Table 6: the ratio of the two columns, eager PyTorch against eager PyTorch."""
    median = {
        (cell["contender"], cell["steps"]): cell["us_per_image"]["median"]
        for cell in read("bench-defenses.json").get("cells", [])
        if cell["threads"] == 1 and cell["batch"] == 1 and cell["form"] in ("", "eager")
    }
    found: Cells = {}
    paper = {(labels[0], column): float(value.split()[0]) for labels, column, value in printed_cells(printed)}
    ours, theirs = printed["columns"]
    for (n,) in {labels for labels, _, _ in printed_cells(printed)}:
        mine, other = ("malade eager", int(n)), ("defense-gan width 64 R=1", int(n))
        if mine not in median or other not in median:
            continue
        ratio, claimed = median[other] / median[mine], paper[n, theirs] / paper[n, ours]
        close = abs(ratio / claimed - 1) <= RATIO
        found[(n,), theirs] = Ours(
            f"{ratio:.1f} times MALADE's time; printed: {claimed:.1f}", "reproduced" if close else "contradicted",
            "one processor thread in place of a GPU, so ratios alone; eager PyTorch, R = 1, published width, one image "
            "(`fastmalade bench defenses`)",
        )  # fmt: skip
    return found


def mnist_by_001(printed: dict[str, Any]) -> Cells:
    """001 Table 1: PGD and BPDA at eps 0.3 on classifier C behind MALADE."""
    counts = {
        row["attack"]: {"correct": row["majority_correct"], "n": row["n"]}
        for row in read("attack-mnist.json").get("rows", [])
    }
    found: Cells = {}
    where = "`fastmalade attack --split test --images 500 --steps 40 --step-size 0.01 --eot 10`"
    for labels, column, value in printed_cells(printed):
        attack = " ".join(labels)
        behind = column.replace(" ", "") == "CNN+MALADE"
        if not behind or "0.4" in attack or "= 4" in attack or "L2" in attack.split("eps")[0]:
            continue
        name = {"PGD": "pgd:unrolled", "BPDAwEOT": "pgd:bpda"}.get(labels[-1])
        if name in counts:
            knows = "everything but the noise" if name == "pgd:unrolled" else "that there is a purifier"
            how = (
                f"the attacker knows {knows}; gradients averaged over 10 draws, 40 steps in place of 1,000, majority "
                f"of 9 fresh queries ({where})"
            )
            found[labels, column] = accuracy(value, printed["unit"], counts[name], how)
    return found


APUDAE = {"APuDAE (Direct)": "apudae-direct", "APuDAE (n=15, alpha=0.01)": "apudae-A",
          "Defense-GAN": "defense-gan", "MagNet": "magnet"}  # fmt: skip


def mnist_by_003(printed: dict[str, Any]) -> Cells:
    """003 Table 2: attacks on the bare classifier at eps 0.1."""
    results, found = read("defenses-accuracy.json").get("results", {}), {}
    columns = {"Clean": "clean", "FGSM": "fgsm 0.1", "PGD": "pgd 0.1"}
    for labels, column, value in printed_cells(printed):
        count = results.get(APUDAE.get(column, ""), {}).get(columns.get(labels[0], ""))
        if count is not None:
            how = "attacks on the bare classifier C, eps 0.1, one query (`python benchmarks/evaluate_defenses.py`)"
            found[labels, column] = accuracy(value, printed["unit"], count, how)
    return found


def counter_attacks_by_003(printed: dict[str, Any]) -> Cells:
    """003 Table 5: counter attacks, whose radius the paper does not state."""
    results, found = read("defenses-accuracy.json").get("results", {}), {}
    for labels, column, value in printed_cells(printed):
        name = {"APuDAE (Direct)": "apudae-direct", "APuDAE (Best)": "apudae-A"}.get(column, "")
        count = results.get(name, {}).get(f"counter {labels[1]} 0.1") if labels[0] == "MNIST" else None
        if count is not None:
            how = f"{name}, eps 0.1, majority of 9 fresh queries (`python benchmarks/evaluate_defenses.py`)"
            why = "the paper states no radius"
            found[labels, column] = accuracy(value, printed["unit"], count, how, why_not=why)
    return found


OVERPOWERED = {
    "pairs within the constraint": "valid", "classified differently": "changed", "average divergence": "divergence",
}  # fmt: skip


def overpowered_by_004(printed: dict[str, Any]) -> Cells:
    """004 section 4.3, on digits in place of faces."""
    outcome, found = read("overpowered.json"), {}
    stages = {("initial", "initial"): "before", ("adversarially trained", "adversarially trained"): "after",
              ("adversarially trained", "initial"): "same pairs, after"}  # fmt: skip
    how = "MNIST in place of CelebA, 32 pairs (`python benchmarks/evaluate_overpowered.py`)"
    for labels, column, _ in printed_cells(printed):
        part = outcome.get(stages.get(labels[:2], ""), {})  # type: ignore[call-overload]
        value = part.get(OVERPOWERED[column])
        if value is not None:
            figure = f"{value:.2f}" if column == "average divergence" else f"{100 * value:.0f}"
            found[labels, column] = Ours(figure, "not comparable", how)
    return found


MEASURED: dict[str, Callable[[dict[str, Any]], Cells]] = {
    "000 Table 6": times_of_table_6,
    "001 Table 1": mnist_by_001,
    "003 Table 2": mnist_by_003,
    "003 Table 5": counter_attacks_by_003,
    "004 Section 4.3 shares": overpowered_by_004,
    "004 Section 4.3 divergences": overpowered_by_004,
}


def section(printed: dict[str, Any]) -> str:
    """Heading, caption, the paper's table with our figures in its cells, and how ours were made."""
    found = MEASURED[printed["name"]](printed) if printed["name"] in MEASURED else {}
    ways = list(dict.fromkeys(ours.how for ours in found.values()))
    width, lines = len(printed["labels"]), []
    for row in printed["rows"]:
        labels = tuple(str(label) for label in row[:width])
        texts = []
        for column, value in zip(printed["columns"], row[width:], strict=True):
            ours = found.get((labels, column))
            text = str(value)
            if ours is not None:
                text += f"; ours {ours.figure}: **{ours.verdict}** ({ways.index(ours.how) + 1})"
            texts.append(text)
        lines.append([*labels, *texts])
    shown = table([*printed["labels"], *printed["columns"]], lines, left=width)
    missing = sum(1 for _ in printed_cells(printed)) - len(found)
    notes = [f"({number + 1}) {way}." for number, way in enumerate(ways)]
    if missing:
        why = WHY_NOT.get(printed["name"])
        notes.append(f"{missing} cells are not measured." + ("" if why is None else f" {why}"))
    what = f"{printed['caption']}. Unit: {printed['unit']}. The attacker knows: {printed['knows']}."
    head = f"## {printed['name']}\n\n{what}"
    return "\n\n".join([head, shown, *notes])


def summary(tables: list[dict[str, Any]]) -> str:
    """Verdicts by paper."""
    lines = []
    for paper in sorted({printed["name"][:3] for printed in tables}):
        mine = [printed for printed in tables if printed["name"].startswith(paper)]
        verdicts = [ours.verdict for p in mine if p["name"] in MEASURED for ours in MEASURED[p["name"]](p).values()]
        cells = sum(1 for printed in mine for _ in printed_cells(printed))
        counts = [
            sum(v.startswith(name) for v in verdicts) for name in ("reproduced", "contradicted", "not comparable")
        ]
        lines.append([paper, *map(str, [cells, *counts, cells - len(verdicts)])])
    head = ["paper", "cells", "reproduced", "contradicted", "not comparable", "not measured"]
    return "## Verdicts\n\n" + table(head, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    tables = list(paper_tables())
    head = (PAPERS / "head.md").read_text(encoding="utf-8").strip()
    text = "\n\n".join([head, summary(tables), *map(section, tables)]) + "\n"
    return renew({PAGE: text}, "benchmarks/make_reproduction.py", check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
