"""Writing files whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def beside(path: Path) -> Path:
    """A fresh hidden name in the folder of ``path``, with its suffix: what is written there can be renamed to it."""
    return path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.partial{path.suffix}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write a file to, which becomes ``path`` when the block is left normally.

    When the block is left by an exception nothing stays behind and an old file keeps its content. The content is on
    the disk before the rename, so that a crash cannot leave an empty file under the final name.
    """
    final = Path(path)
    partial = beside(final)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int = 1) -> None:
    """Write ``value`` as indented JSON with a newline at the end, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
