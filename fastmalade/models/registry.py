"""Networks by name, and networks to and from files (the format is described in :mod:`fastmalade.pretrained`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.models.autoencoder import Autoencoder
from fastmalade.models.began import BeganGenerator
from fastmalade.models.classifiers import build_classifier
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.gan import GanGenerator
from fastmalade.models.prior import PriorNetwork
from fastmalade.models.table8 import is_native_autoencoder
from fastmalade.models.vae import VaeDecoder, VaeEncoder
from fastmalade.pretrained import (
    STORED_DTYPES,
    PretrainedError,
    expected_in_header,
    read_tensors,
    resolve_path,
    write_tensors,
)

NETWORKS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (Autoencoder, BeganGenerator, GanGenerator, PriorNetwork, SkipDenoiser, VaeDecoder, VaeEncoder)
}
"""The networks that defences are built of, by the name that file headers use; each has a ``config()``."""


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
    classifier = network_of(path, header, "classifier", build_classifier)
    fill(path, {"": classifier}, tensors)
    return classifier.requires_grad_(False).eval()


def save_classifier(
    classifier: nn.Module,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a classifier A-D (of ``build_classifier``) to ``path``.

    Args:
        classifier: what to save.
        path: file to write.
        training: facts about the training for the header, JSON values.
        dtype: "float32", or "float16" for half the size.

    Raises:
        TypeError: another module, which could not be rebuilt without running code.
        ValueError: an unknown dtype, or parameters that are not finite.
    """
    config = getattr(classifier, "config", None)
    if not callable(config):
        raise TypeError(f"classifier: expected a model of build_classifier to save, got {type(classifier).__name__}")
    header = {"kind": "classifier", "classifier": config(), "training": dict(training or {})}
    write_tensors(Path(path), classifier.state_dict(), header, dtype)


def load_autoencoder(name_or_path: str | os.PathLike[str]) -> Autoencoder:
    """Load the autoencoder of an autoencoder or purifier file: parameters float32 and frozen, eval mode.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file, or one of another kind.
    """
    path = resolve_path(name_or_path)
    header, tensors = read_tensors(path, "autoencoder", "purifier")
    autoencoder = network_of(path, header, "autoencoder", Autoencoder)
    fill(path, {"": autoencoder}, tensors)
    return autoencoder.requires_grad_(False).eval()


def save_autoencoder(
    autoencoder: Autoencoder,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a Table 8 autoencoder without chain settings; arguments and errors as for :func:`save_classifier`."""
    header = {"kind": "autoencoder", "autoencoder": table8_config(autoencoder), "training": dict(training or {})}
    write_tensors(Path(path), autoencoder.state_dict(), header, dtype)


def table8_config(autoencoder: object) -> dict[str, Any]:
    """The ``config()`` of a Table 8 autoencoder, for the header of a file that holds no other network.

    Raises:
        TypeError: something else, which could not be rebuilt without running code, or a changed one: no file holds
            hooks, pruning or other layers.
    """
    if type(autoencoder) is not Autoencoder:
        raise TypeError(f"autoencoder: expected a fastmalade.Autoencoder to save, got {type(autoencoder).__name__}")
    if not is_native_autoencoder(autoencoder):
        raise TypeError(
            "autoencoder: expected one that is exactly Table 8, got one with hooks, parametrizations, or layers other "
            "than its constructor made; take them off or make them permanent (torch.nn.utils.prune.remove, "
            "remove_parametrizations)"
        )
    return autoencoder.config()


def network_of(path: Path, header: Mapping[str, Any], part: str, make: Callable[..., Any]) -> Any:
    """The network ``make(**header[part])``, its parameters still on the meta device; see :func:`fill`.

    On the meta device nothing is allocated for sizes that a damaged header claims, and no initial parameters are drawn
    from torch's global generator.

    Raises:
        PretrainedError: arguments that ``make`` does not take.
    """
    with expected_in_header(path, f"the arguments of the {part}"), torch.device("meta"):
        return make(**header[part])


def fill(path: Path, networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Give networks their parameters and buffers, in float32.

    Args:
        path: of the file, for messages.
        networks: by the prefix of their tensors' names: "" for the only network of a file.
        tensors: all tensors of the file, by name.

    Raises:
        PretrainedError: tensors missing, too many, of other shapes or dtypes, or not finite.
    """
    states = {prefix: network.state_dict() for prefix, network in networks.items()}
    expected = {f"{prefix}{name}": tuple(v.shape) for prefix, state in states.items() for name, v in state.items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != got:
        raise PretrainedError(f"{path}: expected tensors of shapes {expected}, got {got}")
    for name, value in tensors.items():
        if value.dtype not in STORED_DTYPES.values() or not bool(torch.isfinite(value).all()):
            raise PretrainedError(f"{path}: expected finite float16 or float32 in {name}, got {value.dtype}")
    for prefix, state in states.items():
        # The state dict of the fresh network is kept and filled: it carries the versions of the layers, without which
        # batch normalisation expects the buffers of its first version.
        for name in state:
            state[name] = tensors[f"{prefix}{name}"].float()
        networks[prefix].load_state_dict(state, assign=True)
