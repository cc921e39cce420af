"""Files of weights: safetensors with the configuration as JSON in the header.

Loading reads numbers and JSON and nothing else: no code is run and no network is used. Saving writes beside the
target and renames, so that an interruption leaves the old file. Header format, version 1, under the key
"fastmalade"::

    {"format_version": 1, "kind": "purifier" | "autoencoder" | "classifier" | "defense",
     "autoencoder": {"in_channels", "hidden_channels"} | "classifier": {"name", ...},
     "chain": {...}, "value_range": [low, high], "training": {...}}

The kind "defense" is described in :mod:`fastmalade.defenses.files`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastmalade.backends import checked_precision
from fastmalade.chain.config import ChainConfig
from fastmalade.defenses.purifier import Purifier
from fastmalade.files import replacing
from fastmalade.models import Autoencoder, build_classifier

FORMAT_VERSION = 1
_HEADER_KEY = "fastmalade"
_STORED_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_WEIGHTS_DIR = Path(__file__).parent / "weights"


class PretrainedError(ValueError):
    """A file of weights that is damaged, of another format, or of the wrong kind."""


def shipped_models() -> dict[str, Path]:
    """Names and files of the models inside the package: purifiers, other defences and classifiers."""
    return dict(_shipped(_WEIGHTS_DIR))


@functools.cache
def _shipped(folder: Path) -> dict[str, Path]:
    # Looked for once: what the package ships does not change while it runs, and a look takes as long as half a chain.
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def resolve_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped name or of a path; a shipped name wins over a file of that name.

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


def save_purifier(
    purifier: Purifier,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a purifier with a Table 8 autoencoder to ``path``.

    Args:
        purifier: what to save.
        path: file to write.
        training: facts for the header, JSON values.
        dtype: "float32", or "float16" for half the size.

    Raises:
        TypeError: another autoencoder: it could not be rebuilt without running code.
        ValueError: an unknown dtype, or parameters that are not finite.
    """
    autoencoder = purifier.autoencoder
    if type(autoencoder) is not Autoencoder:
        raise TypeError(f"autoencoder: expected a fastmalade.Autoencoder to save, got {type(autoencoder).__name__}")
    header = {
        "kind": "purifier",
        "autoencoder": autoencoder.config(),
        "chain": purifier.chain.to_dict(),
        "value_range": list(purifier.value_range),
        "training": dict(training or {}),
    }
    write_tensors(Path(path), autoencoder.state_dict(), header, dtype)


def load_purifier(
    name_or_path: str | os.PathLike[str], *, backend: str | None = None, precision: str = "fp32"
) -> Purifier:
    """Load a purifier: parameters float32 and frozen, eval mode.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file, or one that holds no purifier.
    """
    checked_precision(precision)
    path = resolve_path(name_or_path)
    header, tensors = read_tensors(path, "purifier")
    autoencoder = _fill(path, "autoencoder", header, tensors)
    try:
        chain = ChainConfig.from_dict(header["chain"])
        low, high = header["value_range"]
        purifier = Purifier(autoencoder, chain, value_range=(low, high), backend=backend, precision=precision)
    except (KeyError, TypeError, ValueError) as error:
        raise PretrainedError(f"{path}: expected chain and value_range in the header, got: {error}") from error
    return purifier.eval()


def save_autoencoder(
    autoencoder: Autoencoder,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a Table 8 autoencoder without chain settings; else as :func:`save_purifier`."""
    if type(autoencoder) is not Autoencoder:
        raise TypeError(f"autoencoder: expected a fastmalade.Autoencoder to save, got {type(autoencoder).__name__}")
    header = {"kind": "autoencoder", "autoencoder": autoencoder.config(), "training": dict(training or {})}
    write_tensors(Path(path), autoencoder.state_dict(), header, dtype)


def load_autoencoder(name_or_path: str | os.PathLike[str]) -> Autoencoder:
    """Load the autoencoder of an autoencoder or purifier file; errors as for :func:`load_purifier`."""
    path = resolve_path(name_or_path)
    header, tensors = read_tensors(path, "autoencoder", "purifier")
    model = _fill(path, "autoencoder", header, tensors)
    assert isinstance(model, Autoencoder)
    return model


def save_classifier(
    classifier: nn.Module,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a classifier A-D (of ``build_classifier``); arguments and errors as for :func:`save_purifier`."""
    config = getattr(classifier, "config", None)
    if not callable(config):
        raise TypeError(f"classifier: expected a model of build_classifier to save, got {type(classifier).__name__}")
    header = {"kind": "classifier", "classifier": config(), "training": dict(training or {})}
    write_tensors(Path(path), classifier.state_dict(), header, dtype)


def load_classifier(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """Load a classifier, (B, C, H, W) in [0, 1] -> logits (B, K): parameters float32 and frozen, eval mode.

    Args:
        name_or_path: a shipped name ("mnist-c") or a file of :func:`save_classifier`.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file, or one that holds no classifier.
    """
    path = resolve_path(name_or_path)
    header, tensors = read_tensors(path, "classifier")
    return _fill(path, "classifier", header, tensors)


def read_header(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration in a file's header, the facts about its training included; errors as for loading."""
    header, _ = read_tensors(resolve_path(name_or_path), "purifier", "autoencoder", "classifier", "defense")
    return header


def write_tensors(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any], dtype: str) -> None:
    """Write tensors under a header, whole or not at all.

    Args:
        path: file to write.
        state: finite floating tensors by name.
        header: JSON values.
        dtype: "float32" or "float16".

    Raises:
        ValueError: an unknown dtype, or values that are not finite in it.
    """
    if dtype not in _STORED_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_STORED_DTYPES)}, got {dtype!r}")
    tensors = {
        name: value.detach().to(device="cpu", dtype=_STORED_DTYPES[dtype]).contiguous() for name, value in state.items()
    }
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite parameters that fit {dtype}, got NaN or infinity")
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, allow_nan=False)
    content = save(tensors, metadata={_HEADER_KEY: text})
    with replacing(path) as partial:
        partial.write_bytes(content)


def read_tensors(path: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


def _fill(path: Path, part: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    try:
        # On the meta device nothing is allocated for sizes that a damaged header claims, and no initial
        # parameters are drawn from torch's global generator.
        with torch.device("meta"):
            model = Autoencoder(**header[part]) if part == "autoencoder" else build_classifier(**header[part])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PretrainedError(f"{path}: expected the arguments of the {part} in the header, got: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != got:
        raise PretrainedError(f"{path}: expected tensors of shapes {expected}, got {got}")
    for name, value in tensors.items():
        if value.dtype not in _STORED_DTYPES.values() or not bool(torch.isfinite(value).all()):
            raise PretrainedError(f"{path}: expected finite float16 or float32 in {name}, got {value.dtype}")
    model.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()}, assign=True)
    return model.requires_grad_(False).eval()
