"""Blocks of Markdown tables in README.md and docs/, which commands of this folder renew from committed results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmalade.files import replacing

ROOT = Path(__file__).resolve().parents[1]


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table in Markdown; the first ``left`` columns are left-aligned, the others right-aligned."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def replaced(text: str, block: str, begin: str, end: str) -> str:
    """``text`` with ``block`` between the marks ``begin`` and ``end``.

    Raises:
        ValueError: the marks are not there exactly once and in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected the lines {begin} and {end} once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def renew(pages: Mapping[Path, str], command: str, *, check: bool) -> int:
    """Write the files whose text has changed.

    Args:
        pages: file -> the text it should have.
        command: what renews them, for the message.
        check: write nothing, and say whether the files are up to date.

    Returns:
        Exit code: 1 where ``check`` finds a file out of date.
    """
    changed = {path: text for path, text in pages.items() if text != path.read_text(encoding="utf-8")}
    if check:
        print(f"out of date: run python {command}" if changed else "up to date")
        return int(bool(changed))
    for path, text in changed.items():
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return 0
