"""Importing the extension modules that a build may or may not have made."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType


class BackendUnavailableError(RuntimeError):
    """A backend, or an instruction set of it, was asked for and cannot be had; the message says why."""


def import_extension(name: str, title: str) -> ModuleType:
    """The module ``fastmalade._<name>``.

    Args:
        name: "cpu" or "cuda", its key in the build's record too.
        title: what messages call it.

    Raises:
        BackendUnavailableError: with what the build recorded where it built nothing, else with what the import said.
    """
    try:
        return importlib.import_module(f"fastmalade._{name}")
    except ImportError as error:
        info = Path(__file__).resolve().parent.parent / "_build_info.json"
        record = json.loads(info.read_text(encoding="utf-8")).get(name, {}) if info.is_file() else {}
        why = f"not built: {record['reason']}" if record.get("reason") else str(error)
        raise BackendUnavailableError(f"{title} cannot be loaded: {why}") from error
