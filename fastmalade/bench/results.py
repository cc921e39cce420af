"""Results of runs as JSON: what every one of them says about its machine, and the file it is kept in."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastmalade
from fastmalade.bench import machine
from fastmalade.files import write_json


def new_result(kind: str, version: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A result without cells, and not complete.

    Args:
        kind: the command.
        version: of the format.
        settings: JSON values.
    """
    return {
        "kind": kind,
        "format": version,
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": machine.describe(),
        "versions": {
            "fastmalade": fastmalade.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "commit": machine.commit(),
        "warnings": machine.warnings(),
        "cells": [],
    }


def save(result: dict[str, Any], output: Path | None) -> None:
    """Write a result to its file, where it has one."""
    if output is not None:
        write_json(output, result)
