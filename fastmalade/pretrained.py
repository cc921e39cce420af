"""Files of weights: safetensors with the configuration as JSON in the header.

Reading a file takes numbers and JSON out of it, never code, and uses no network. Writing goes to a temporary file that
is renamed at the end, so an interruption leaves the old file in place. The header, format version 1, is stored under
the key "fastmalade"::

    {"format_version": 1, "kind": "classifier", "classifier": {"name", ...}, "training": {...}}
    {"format_version": 1, "kind": "autoencoder", "autoencoder": {"in_channels", "hidden_channels"}, "training": {...}}
    {"format_version": 1, "kind": "purifier", "autoencoder": {...}, "chain": {...},
     "value_range": [low, high], "training": {...}}
    {"format_version": 1, "kind": "defense", "defense": name, "settings": {...},
     "networks": {part: {"type", "config"}}, "value_range": [low, high], "training": {...}}

The tensors of a "defense" are named part.parameter; the other kinds hold one network, and its own names. What the
headers mean is up to the classes that read and write them: :mod:`fastmalade.models.registry` and
:mod:`fastmalade.defenses.base`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastmalade.files import write_bytes

FORMAT_VERSION = 1
KINDS = ("purifier", "autoencoder", "classifier", "defense")
STORED_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_HEADER_KEY = "fastmalade"
_WEIGHTS_DIR = Path(__file__).parent / "weights"


class PretrainedError(ValueError):
    """A file of weights that is damaged, of another format, or of the wrong kind."""


def shipped_models() -> dict[str, Path]:
    """Names and files of the models inside the package: purifiers, other defences and classifiers."""
    return dict(_shipped(_WEIGHTS_DIR))


@functools.cache
def _shipped(folder: Path) -> dict[str, Path]:
    # Cached: what the package ships does not change while it runs, and reading the folder takes as long as half a
    # chain on one image.
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def resolve_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped name or of a path; a shipped name wins over a file of the same name.

    Raises:
        FileNotFoundError: neither; lists the shipped names.
    """
    shipped = _shipped(_WEIGHTS_DIR)
    if isinstance(name_or_path, str) and name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        names = ", ".join(shipped) or "none (this build ships no weights)"
        raise FileNotFoundError(
            f"model: expected a file or one of the shipped names {names}; got {str(name_or_path)!r}"
        )
    return path


def read_header(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration in a file's header, including the facts about its training.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file.
    """
    header, _ = read_tensors(resolve_path(name_or_path), *KINDS)
    return header


def read_tensors(path: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file, which has to be of one of these ``kinds``.

    Raises:
        PretrainedError: a damaged or foreign file, or one of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY)
            header = None if text is None else json.loads(text)
            if not isinstance(header, dict):
                raise PretrainedError(f"{path}: expected a fastmalade header, got a safetensors file without one")
            if header.get("format_version") != FORMAT_VERSION:
                raise PretrainedError(
                    f"{path}: expected format version {FORMAT_VERSION}, got {header.get('format_version')!r}"
                )
            if header.get("kind") not in kinds:
                raise PretrainedError(f"{path}: expected kind {' or '.join(kinds)}, got {header.get('kind')!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{path}: expected a safetensors file of fastmalade, got: {error}") from error
    return header, tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], dtype: str) -> None:
    """Write tensors under a header; the file appears complete or not at all.

    Args:
        path: file to write.
        tensors: finite floating tensors by name.
        header: JSON values.
        dtype: "float32" or "float16".

    Raises:
        ValueError: an unknown dtype, or values that are not finite in it.
    """
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(STORED_DTYPES)}, got {dtype!r}")
    stored = {
        name: value.detach().to(device="cpu", dtype=STORED_DTYPES[dtype]).contiguous()
        for name, value in tensors.items()
    }
    for name, value in stored.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite parameters that fit {dtype}, got NaN or infinity")
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, allow_nan=False)
    write_bytes(path, save(stored, metadata={_HEADER_KEY: text}))


@contextmanager
def expected_in_header(path: Path, what: str) -> Iterator[None]:
    """Turn any error that a header's values cause inside the block into a PretrainedError that says what was wrong."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PretrainedError(f"{path}: expected {what} in the header, got: {error}") from error
