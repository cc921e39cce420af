"""Named cases and their hashes for same_bits.py, and the inputs that all of them are made of.

Nothing here uses a name of the package that is not public: what else a case needs ``defined`` finds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmalade
from fastmalade import Autoencoder, data

SEED = 2**63 + 11


class Cases:
    """Hashes by name; a case that raises is kept as its error, so that the others are still compared."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.left_out = ""

    def add(self, name: str, function: Any, /, *arguments: Any, threads: int = 1, **options: Any) -> None:
        """Calls ``function`` with torch on ``threads`` threads and keeps the hash of each part of what it returns."""
        torch.set_num_threads(threads)
        try:
            parts = dict(_parts(name, function(*arguments, **options)))
        except Exception as error:
            parts = {name: {"error": f"{type(error).__name__}: {error}"[:300]}}
        repeated = parts.keys() & self.found.keys()
        if repeated:
            raise ValueError(f"expected a name for each case, got {sorted(repeated)} twice")
        self.found |= parts


def _parts(name: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and hash of every array, number and text in a result of any of the package's kinds."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        # Of a result only the seconds that it took are made by a clock.
        return [part for key, entry in items if key != "seconds" for part in _parts(f"{name}.{key}", entry)]
    if isinstance(value, Tensor):
        # Tensors of half precision without a type of numpy's have their bytes all the same.
        value, dtype, shape = value.detach().contiguous(), str(value.dtype), list(value.shape)
        raw = value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, (np.ndarray, np.generic)):
        raw, dtype, shape = np.ascontiguousarray(value).tobytes(), value.dtype.str, list(value.shape)
    else:
        raw, dtype, shape = (value if isinstance(value, bytes) else repr(value).encode()), type(value).__name__, []
    return [(name, {"sha256": hashlib.sha256(raw).hexdigest(), "dtype": dtype, "shape": shape})]


def defined(name: str, folder: str = "") -> Any:
    """A function or class that no public module exports, from whichever file below ``folder`` defines it.

    The only place that knows of names inside the package. It looks into the source files instead of naming modules, so
    that it finds the same thing before and after a move.
    """
    package = Path(fastmalade.__file__).parent
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).with_suffix("")
        text = path.read_text(encoding="utf-8")
        if place.as_posix().startswith(folder) and re.search(rf"^(?:class|def) {name}\b", text, re.MULTILINE):
            return getattr(importlib.import_module(".".join(("fastmalade", *place.parts))), name)
    raise LookupError(f"no file of fastmalade/{folder} defines {name}")


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    """Images in [0, 1)."""
    return torch.from_numpy(np.random.default_rng([seed, *shape]).random(shape, dtype=np.float32))


def normals(shape: Sequence[int], seed: int = 1) -> Tensor:
    """Noise and cotangents."""
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32))


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Real digits, spread over the classes, and their labels."""
    images, labels = data.embedded_digits()
    step = len(images) // max(count, 1)
    chosen = slice(0, step * count, step)
    return torch.from_numpy(images[chosen]).unsqueeze(1).float() / 255, torch.from_numpy(labels[chosen])


def randomised(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """Frozen parameters that no initialisation draws, biases included (which start at 0 in an Autoencoder)."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = scale * normals(parameter.shape, seed=100 + index)
    return module.requires_grad_(False).eval()


def autoencoder(shape: Sequence[int], hidden: tuple[int, int]) -> Autoencoder:
    """A Table 8 autoencoder of these sizes."""
    return randomised(Autoencoder(shape[0], hidden))


class UserModule(nn.Module):
    """An r(x) of a user's own, for which only the update of each step runs on a backend."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.layer = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x))


def value_and_gradient(function: Callable[..., Any], x: Tensor, *others: Tensor, **options: Any) -> list[Tensor]:
    """The result and the vector-Jacobian products with respect to ``x`` and ``others``, for a fixed cotangent."""
    leaf = x.clone().requires_grad_()
    result = function(leaf, **options)
    cotangent = normals(result.shape).to(result.dtype)
    return [result, *torch.autograd.grad(result, (leaf, *others), cotangent)]
