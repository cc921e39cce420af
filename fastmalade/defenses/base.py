"""``Defense``: what MALADE and its rivals have in common, and how a defence becomes a file and comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from fastmalade.chain.observers import refuse_transformations
from fastmalade.checks import check_value_range
from fastmalade.inputs import Prepared, prepare
from fastmalade.models.registry import NETWORKS, fill
from fastmalade.pretrained import PretrainedError, expected_in_header, read_tensors, resolve_path, write_tensors
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed

StatedGradient = Literal["unrolled", "bpda"]
AnyDefense = TypeVar("AnyDefense", bound="Defense")

DEFENSES: dict[str, type[Defense]] = {}
"""Every class that has a ``kind``, by that name; it registers itself when it is defined."""


@dataclass(frozen=True)
class Cost:
    """Work of one call without gradients.

    Attributes:
        flops: floating point operations of the convolutions and matrix products, a multiply-add counted as two.
        forward_evaluations: passes of one image through the network that the defence is built on.
        gradient_evaluations: vector-Jacobian products of that network for one image.
    """

    flops: int
    forward_evaluations: int
    gradient_evaluations: int


class Defense(nn.Module):
    """Takes images, returns purified images of the same shape, which are then classified.

    ``forward`` is differentiable and goes in front of a classifier; ``purify`` takes any array of images, checks it and
    gives no gradient. Both draw fresh randomness at every call unless they are given a seed; with a seed the result
    depends on (seed, sample id) and on nothing else.

    A subclass defines ``_purified`` and ``cost``, and ``channels``, ``multiple`` and ``image_size`` where its networks
    do not take every image. One that has a ``kind``, ``networks`` and ``settings`` can be saved and loaded.

    Args:
        value_range: (low, high) of the images given and returned, one number each for all channels; the networks work
            in [0, 1]. Where a normalisation gives every channel its own bounds, purify in [0, 1] and normalise in front
            of the classifier.
        gradient: "unrolled": the gradient of ``forward`` is its exact derivative for the randomness that it drew.
            "bpda": the defence counts as the identity on the way back (Athalye et al. 2018).

    Raises:
        TypeError: a value range that is not a pair of numbers.
        ValueError: an empty or infinite value range, or one with bounds by channel; an unknown gradient.
    """

    kind: ClassVar[str]
    """Name of the defence in files."""
    file_kind: ClassVar[str] = "defense"
    """Kind of file that it is saved to."""
    overridable: ClassVar[frozenset[str]] = frozenset()
    """Settings that ``purify`` takes for one call."""
    images_per_call: ClassVar[int] = 64
    """Images that ``fastmalade purify`` hands over at once: a search over codes or weights keeps a lot for each."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in vars(cls):
            return
        other = DEFENSES.setdefault(cls.kind, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"kind: expected a name of its own for {cls.__name__}, got that of {other.__name__}")
        DEFENSES[cls.kind] = cls

    def __init__(self, *, value_range: tuple[float, float] = (0.0, 1.0), gradient: StatedGradient = "unrolled") -> None:
        super().__init__()
        bounds = check_value_range(value_range)
        if gradient not in get_args(StatedGradient):
            raise ValueError(f"gradient: expected one of {', '.join(get_args(StatedGradient))}, got {gradient!r}")
        self.value_range = bounds
        self.gradient: StatedGradient = gradient

    @property
    def channels(self) -> int | None:
        """C of the images, or None if any is taken."""
        return None

    @property
    def multiple(self) -> int:
        """H and W must be multiples of this."""
        return 1

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images, or None if any is taken."""
        return None

    @property
    def is_random(self) -> bool:
        """Whether calls without a seed differ."""
        return True

    @property
    def states_kept(self) -> int:
        """Roughly how many tensors of the size of an image the gradient of one call keeps."""
        return 1

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """Work of one call on ``batch`` images of ``image_shape`` (C, H, W).

        Raises:
            ValueError: a batch below 1, or a shape that does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not count its work")

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds, by the name of the constructor's argument."""
        raise NotImplementedError(f"{type(self).__name__} does not name its networks")

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor besides the networks and the value range, as JSON values."""
        raise NotImplementedError(f"{type(self).__name__} does not name its settings")

    def forward(self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None) -> Tensor:
        """Purify a batch, differentiably (see ``gradient``). Parameters of networks count as constants.

        Values are not checked against the range: that would cost a pass over the batch inside every step of an attack.

        Args:
            x: (B, C, H, W) in ``value_range``, dtype and device of the networks.
            seed: 0 <= seed < 2**64; None draws a fresh one from the operating system.
            sample_ids: B integers that number the images for the randomness, 0 <= id < 2**64; 0..B-1 by default.

        Returns:
            (B, C, H, W) in ``value_range``.

        Raises:
            TypeError: x is not a floating tensor, or has another dtype than the networks; seed or ids are not integers.
            ValueError: a shape, seed or id that does not fit.
        """
        self._check(x)
        number = fresh_seed() if seed is None else check_seed(seed)
        ids = check_sample_ids(sample_ids, x.shape[0], x.device)
        if self.gradient == "unrolled":
            return self._in_value_range(x, number, ids)
        with torch.no_grad():
            result = self._in_value_range(x, number, ids)
        # The difference is exactly zero: value of the purified images, gradient of the identity.
        return result + (x - x.detach())

    @torch.no_grad()
    def forward_from_device(self, x: Tensor, seed_bits: Tensor, sample_ids: Tensor) -> Tensor:
        """:meth:`forward` without gradient, with a seed that kernels read when they run: what a CUDA graph records.

        Args:
            x: see :meth:`forward`.
            seed_bits: int64 (1,) on the device of ``x``, the bits of the seed.
            sample_ids: int64 (B,) on the device of ``x``.

        Returns:
            (B, C, H, W) in ``value_range``.

        Raises:
            TypeError, ValueError: an ``x`` that :meth:`forward` does not take.
        """
        self._check(x)
        return self._in_value_range(x, seed_bits, sample_ids)

    def purify(self, images: Any, *, seed: int | None = None, sample_ids: Any = None, **overrides: Any) -> Any:
        """Purify images of any supported kind; the result has the same kind, dtype, device and layout.

        Args:
            images: as for :func:`fastmalade.purify`; the full rules are those of :func:`fastmalade.inputs.prepare`.
            seed, sample_ids: see :meth:`forward`.
            overrides: settings for this call only. A :class:`fastmalade.Purifier` takes some; other defences have
                their settings as attributes.

        Returns:
            Purified images without gradient; an empty result for an empty batch.

        Raises:
            TypeError: wrong kind or dtype, or an override that this defence does not take.
            ValueError: wrong shape, NaN or infinity, values out of range by more than rounding.
            FloatingPointError: the iteration diverged.
        """
        if overrides:
            raise TypeError(f"{', '.join(overrides)}: expected a Purifier to set this for, got {type(self).__name__}")
        refuse_transformations()
        prepared = self._prepared(images)
        with torch.no_grad():
            result = self(prepared.images, seed=seed, sample_ids=sample_ids)
        # Mapping back to the value range may round a value at its edge out of it.
        return prepared.restore(result.clamp(*self.value_range))

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Defense:
        """Load a shipped defence or a file of :meth:`save_pretrained`: frozen parameters, eval mode.

        Never runs code from the file and never uses a network.

        Raises:
            FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
            PretrainedError: a damaged or foreign file, or one that holds another defence than ``cls``.
        """
        return load_defense(name_or_path, cls)

    def save_pretrained(self, path: str | os.PathLike[str], *, training: dict[str, Any] | None = None) -> None:
        """Write networks and settings to one safetensors file, which appears complete or not at all.

        Args:
            path: file to write; an old one is replaced only once the new one is complete.
            training: facts about the training for the header, JSON values.

        Raises:
            TypeError: a network that could not be rebuilt without running code.
        """
        save_defense(self, path, training=training)

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        """Purify x (B, C, H, W) in [0, 1], B >= 1, with the randomness of (seed, sample_ids (B,)); differentiable.

        ``seed`` is a number, or int64 (1,) on the device where a CUDA graph is captured: only
        :func:`fastmalade.noise.normals_like` should read it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it purifies")

    def _in_value_range(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.clone()
        if self.value_range == (0.0, 1.0):
            return self._purified(x, seed, sample_ids)
        low, high = self.value_range
        return self._purified((x - low) / (high - low), seed, sample_ids) * (high - low) + low

    def _prepared(self, images: Any) -> Prepared:
        dtype, device = self._dtype_and_device()
        return prepare(
            images,
            channels=self.channels,
            multiple=self.multiple,
            value_range=self.value_range,
            dtype=dtype,
            device=device,
        )

    def _dtype_and_device(self) -> tuple[torch.dtype, torch.device]:
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
        return torch.float32, torch.device("cpu")

    def _check(self, x: Tensor) -> None:
        dtype, _ = self._dtype_and_device()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a floating tensor, got {got}")
        if next(self.parameters(), None) is not None and x.dtype != dtype:
            raise TypeError(f"x: expected dtype {dtype}, that of the networks, got {x.dtype}")
        self._check_shape(tuple(x.shape))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        channels, size, multiple = self.channels, self.image_size, self.multiple
        fits = len(shape) == 4 and min(shape[1:]) > 0 and (channels is None or shape[1] == channels)
        fits = fits and (size is None or tuple(shape[2:]) == size) and all(side % multiple == 0 for side in shape[2:])
        if not fits:
            wanted = "C" if channels is None else str(channels)
            sides = "H, W" if size is None else f"{size[0]}, {size[1]}"
            more = "" if multiple == 1 else f" with H and W multiples of {multiple}"
            raise ValueError(f"x: expected shape (B, {wanted}, {sides}){more}, got {shape}")

    def _to_header(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        """The header of a file, and the networks in it by the prefix of their tensors' names."""
        parts = self.networks()
        for part, network in parts.items():
            if NETWORKS.get(type(network).__name__) is not type(network):
                raise TypeError(f"{part}: expected one of {', '.join(NETWORKS)} to save, got {type(network).__name__}")
        header = {
            "kind": self.file_kind,
            "defense": self.kind,
            "settings": self.settings(),
            "networks": {
                part: {"type": type(network).__name__, "config": network.config()}  # type: ignore[operator]
                for part, network in parts.items()
            },
            "value_range": list(self.value_range),
        }
        return header, {f"{part}.": network for part, network in parts.items()}

    @classmethod
    def _from_header(cls, path: Path, header: Mapping[str, Any]) -> tuple[Defense, dict[str, nn.Module]]:
        """The inverse of :meth:`_to_header`: a defence whose networks still wait for their parameters."""
        with expected_in_header(path, "networks and settings"):
            # On the meta device nothing is allocated for sizes that a damaged header claims.
            with torch.device("meta"):
                parts = {part: NETWORKS[spec["type"]](**spec["config"]) for part, spec in header["networks"].items()}
            low, high = header["value_range"]
            defense = cls(**parts, **header["settings"], value_range=(low, high))
        return defense, {f"{part}.": network for part, network in parts.items()}


def save_defense(
    defense: Defense,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> None:
    """Write a defence to ``path``.

    Args:
        defense: an instance of one of the classes in :data:`DEFENSES`.
        path: file to write.
        training: facts about the training for the header, JSON values.
        dtype: "float32", or "float16" for half the size.

    Raises:
        TypeError: another defence, or one with a network that could not be rebuilt without running code.
        ValueError: an unknown dtype, or parameters that are not finite.
    """
    if DEFENSES.get(str(getattr(defense, "kind", None))) is not type(defense):
        known = ", ".join(sorted(DEFENSES))
        raise TypeError(f"defense: expected one of {known} to save, got {type(defense).__name__}")
    header, networks = defense._to_header()
    tensors = {
        f"{prefix}{name}": value for prefix, network in networks.items() for name, value in network.state_dict().items()
    }
    write_tensors(Path(path), tensors, header | {"training": dict(training or {})}, dtype)


def load_defense(name_or_path: str | os.PathLike[str], expected: type[AnyDefense]) -> AnyDefense:
    """Load a defence: parameters float32 and frozen, eval mode.

    Args:
        name_or_path: a shipped name or a file of :func:`save_defense`.
        expected: the class wanted; :class:`Defense` for any.

    Raises:
        FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
        PretrainedError: a damaged or foreign file, or one that holds another defence.
    """
    path = resolve_path(name_or_path)
    kinds = {cls.file_kind for cls in DEFENSES.values() if issubclass(cls, expected)} or {"defense"}
    header, tensors = read_tensors(path, *sorted(kinds))
    # A kind of file that belongs to one class does not name it again.
    name = header.get("defense") if header["kind"] == "defense" else header["kind"]
    cls = DEFENSES.get(str(name))
    if cls is None:
        raise PretrainedError(f"{path}: expected one of {', '.join(sorted(DEFENSES))}, got {name!r}")
    if not issubclass(cls, expected):
        raise PretrainedError(f"{path}: expected a {expected.__name__}, got {cls.__name__}")
    defense, networks = cls._from_header(path, header)
    fill(path, networks, tensors)
    found: Any = defense.requires_grad_(False).eval()
    return found
