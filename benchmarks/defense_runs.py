"""What the evaluations of defences share: options, results that an interrupted run goes on from, and their tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks import table

from fastmalade.evaluation import wilson_interval


def chosen(parser: argparse.ArgumentParser, option: str, text: str, known: Iterable[str]) -> list[str]:
    """Names out of ``text``, comma-separated; one that is not known ends the program."""
    names = [name for name in text.split(",") if name]
    allowed = list(known)
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        parser.error(f"{option}: expected any of {', '.join(allowed)}, got {', '.join(unknown)}")
    return names


def gone_on(parser: argparse.ArgumentParser, output: Path, fresh: dict[str, Any], same: str) -> dict[str, Any]:
    """The state in ``output``, or ``fresh`` where there is none; one made under another ``same`` ends the program.

    Args:
        parser: reports the error.
        output: JSON file of an earlier run.
        fresh: the state before anything is measured.
        same: the key that must agree, such as "settings".
    """
    if not output.exists():
        return fresh
    earlier: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if earlier[same] != fresh[same]:
        parser.error(f"{output}: expected a result of the same {same} to go on from; name another file")
    return earlier


def accuracy_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Percentages with 95% intervals in Markdown, one line per defence.

    Args:
        results: defence -> column -> {"correct": right answers, "n": number of images}. Cells with fewer images than
            the largest say how many they stand for.
    """
    columns = list(dict.fromkeys(column for entries in results.values() for column in entries))
    most = max((entry["n"] for entries in results.values() for entry in entries.values()), default=0)
    lines = [
        [name, *(_accuracy(entries[column], most) if column in entries else "" for column in columns)]
        for name, entries in results.items()
    ]
    return table(["%", *columns], lines)


def substitute_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Shares of the valid images that fool the defence, in Markdown: one line per defence and attacker.

    Args:
        results: defence -> attacker -> {"attacks": {column: {"valid": n, "fooled": n, "fooled_substitute": n}}}, as
            evaluate_substitutes.py writes it.
    """
    entries = [(name, attacker, entry) for name, found in results.items() for attacker, entry in found.items()]
    columns: Sequence[str] = list(entries[0][2]["attacks"]) if entries else []
    lines = [
        [name, attacker, *(_share(counts["fooled"], counts["valid"]) for counts in entry["attacks"].values())]
        for name, attacker, entry in entries
    ]
    return table(["fooled", "attacker", *columns], lines, left=2)


def _share(count: int, among: int) -> str:
    return f"{100 * count / among:.0f}% of {among}" if among else "no valid image"


def _accuracy(entry: Mapping[str, Any], most: int) -> str:
    correct, n = entry["correct"], entry["n"]
    low, high = wilson_interval(correct, n)
    among = "" if n == most else f" of {n}"
    return f"{100 * correct / n:.1f} [{100 * low:.0f}, {100 * high:.0f}]{among}"
