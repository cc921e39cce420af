"""Defences as files: the safetensors format of :mod:`fastmalade.pretrained` with the kind "defense".

Header: {"kind": "defense", "defense": kind, "settings": {...}, "networks": {part: {"type", "config"}}, "value_range",
"training"}; tensors are named part.parameter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmalade.defenses.apudae import Apudae
from fastmalade.defenses.base import Defense
from fastmalade.defenses.deep_prior import DeepPrior
from fastmalade.defenses.defense_gan import DefenseGan
from fastmalade.defenses.inc import AutoencodeAndClassify, InvertAndClassify
from fastmalade.defenses.magnet import MagNet
from fastmalade.defenses.purifier import Purifier
from fastmalade.models import Autoencoder
from fastmalade.models.began import BeganGenerator
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.gan import GanGenerator
from fastmalade.models.prior import PriorNetwork
from fastmalade.models.vae import VaeDecoder, VaeEncoder
from fastmalade.pretrained import PretrainedError, load_purifier, read_tensors, resolve_path, write_tensors

DEFENSES: dict[str, type[Any]] = {
    cls.kind: cls for cls in (Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet)
}
NETWORKS: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (Autoencoder, BeganGenerator, GanGenerator, PriorNetwork, SkipDenoiser, VaeDecoder, VaeEncoder)
}
AnyDefense = TypeVar("AnyDefense", bound=Defense)


def save_defense(
    defense: Defense,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a defence to ``path``.

    Args:
        defense: one of :data:`DEFENSES`.
        path: file to write.
        training: facts for the header, JSON values.
        dtype: "float32", or "float16" for half the size.

    Raises:
        TypeError: another defence, or one with a network that could not be rebuilt without running code.
        ValueError: an unknown dtype, or parameters that are not finite.
    """
    kind = getattr(defense, "kind", None)
    if DEFENSES.get(str(kind)) is not type(defense):
        raise TypeError(f"defense: expected one of {', '.join(DEFENSES)} to save, got {type(defense).__name__}")
    parts: dict[str, nn.Module] = defense.networks()  # type: ignore[operator]
    for part, network in parts.items():
        if NETWORKS.get(type(network).__name__) is not type(network):
            raise TypeError(f"{part}: expected one of {', '.join(NETWORKS)} to save, got {type(network).__name__}")
    header = {
        "kind": "defense",
        "defense": kind,
        "settings": defense.settings(),  # type: ignore[operator]
        "networks": {
            part: {"type": type(network).__name__, "config": network.config()}  # type: ignore[operator]
            for part, network in parts.items()
        },
        "value_range": list(defense.value_range),
        "training": dict(training or {}),
    }
    tensors = {
        f"{part}.{name}": value for part, network in parts.items() for name, value in network.state_dict().items()
    }
    write_tensors(Path(path), tensors, header, dtype)


def load_defense(name_or_path: str | os.PathLike[str], expected: type[AnyDefense]) -> AnyDefense:
    """Load a defence: parameters float32 and frozen, eval mode.

    Args:
        name_or_path: a shipped name or a file of :func:`save_defense`, or of ``Purifier.save_pretrained``.
        expected: the class wanted; :class:`Defense` for any, MALADE's :class:`Purifier` among them.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file, or one that holds another defence.
    """
    path = resolve_path(name_or_path)
    header, tensors = read_tensors(path, *("defense", "purifier") if issubclass(Purifier, expected) else ("defense",))
    if header["kind"] == "purifier":
        purifier: Any = load_purifier(path)
        return purifier
    cls = DEFENSES.get(str(header.get("defense")))
    if cls is None:
        raise PretrainedError(f"{path}: expected one of {', '.join(DEFENSES)}, got {header.get('defense')!r}")
    if not issubclass(cls, expected):
        raise PretrainedError(f"{path}: expected a {expected.__name__}, got {cls.__name__}")
    try:
        # On the meta device nothing is allocated for sizes that a damaged header claims.
        with torch.device("meta"):
            networks = {part: NETWORKS[spec["type"]](**spec["config"]) for part, spec in header["networks"].items()}
        low, high = header["value_range"]
        defense = cls(**networks, **header["settings"], value_range=(low, high))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PretrainedError(f"{path}: expected networks and settings in the header, got: {error}") from error
    _fill(path, networks, tensors)
    return defense.requires_grad_(False).eval()


def _fill(path: Path, networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    wanted = {f"{p}.{name}": tuple(v.shape) for p, net in networks.items() for name, v in net.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != got:
        raise PretrainedError(f"{path}: expected tensors of shapes {wanted}, got {got}")
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise PretrainedError(f"{path}: expected finite float16 or float32 in {name}, got {value.dtype}")
    for part, network in networks.items():
        # Filled in place of a fresh one, which carries the versions of layers: without them batch normalisation expects
        # the buffers of its first version.
        state = network.state_dict()
        for name in state:
            state[name] = tensors[f"{part}.{name}"].float()
        network.load_state_dict(state, assign=True)
