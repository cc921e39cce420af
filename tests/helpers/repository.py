"""Paths of the source tree, scripts as modules, and what is compiled once for all test processes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import filelock
import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = Path(__file__).resolve().parent


def load_script(path: str) -> ModuleType:
    """A script of the repository as a module, by its path from the root."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where dataclasses look for the module that they are defined in
    spec.loader.exec_module(module)
    return module


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The file or folder ``name`` that ``build(path)`` makes, once for all processes of this run."""
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    target, unfinished = folder / name, folder / f"unfinished-{name}"
    with filelock.FileLock(folder / f"{name}.lock"):
        if not target.exists():
            build(unfinished)
            unfinished.rename(target)
    return target
