"""``Defense``: what every purifier of images has in common, MALADE and its rivals alike."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastmalade.inputs import prepare
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed

StatedGradient = Literal["unrolled", "bpda"]


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
    """A purifier: images in, images of the same shape out, before they are classified.

    ``forward`` is the differentiable piece that goes in front of a classifier; ``purify`` is the forgiving one that
    takes any array of images and checks it. Randomness is fresh at every call unless a seed is given, and with
    a seed depends on (seed, sample id) and on nothing else.

    A subclass defines ``_purified``, ``cost``, and ``channels`` and ``multiple`` where its networks ask for them.

    Args:
        value_range: (low, high) of the images given and returned; the networks work in [0, 1].
        gradient: "unrolled": the gradient of ``forward`` is its exact derivative for the randomness that it drew.
            "bpda": the defence counts as the identity on the way back (Athalye et al. 2018).

    Raises:
        ValueError: an empty or infinite value range, or an unknown gradient.
    """

    def __init__(self, *, value_range: tuple[float, float] = (0.0, 1.0), gradient: StatedGradient = "unrolled") -> None:
        super().__init__()
        low, high = (float(bound) for bound in value_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"value_range: expected finite (low, high) with low < high, got {tuple(value_range)}")
        if gradient not in get_args(StatedGradient):
            raise ValueError(f"gradient: expected one of {', '.join(get_args(StatedGradient))}, got {gradient!r}")
        self.value_range = (low, high)
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
        """Tensors of the size of an image that the gradient of one call keeps, roughly."""
        return 1

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """Work of one call on ``batch`` images of ``image_shape`` (C, H, W).

        Raises:
            ValueError: a batch below 1, or a shape that does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not count its work")

    def forward(self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None) -> Tensor:
        """Purify a batch, differentiably (see ``gradient``). Parameters of networks count as constants.

        Values are not checked against the range: that would cost a pass over the batch inside every step of an attack.

        Args:
            x: (B, C, H, W) in ``value_range``, dtype and device of the networks.
            seed: 0 <= seed < 2**64; None draws a fresh one from the operating system.
            sample_ids: B integers that number the images for the randomness; 0..B-1 by default.

        Returns:
            (B, C, H, W) in ``value_range``.

        Raises:
            TypeError: x is no floating tensor, or has another dtype than the networks; seed or ids are no integers.
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
        """:meth:`forward` without gradient, for a seed that is read when the kernels run: what a CUDA graph records.

        Args:
            x: see :meth:`forward`.
            seed_bits: int64 (1,) on the device of ``x``, the bits of the seed.
            sample_ids: int64 (B,) there.

        Returns:
            (B, C, H, W) in ``value_range``.

        Raises:
            TypeError, ValueError: an ``x`` that :meth:`forward` does not take.
        """
        self._check(x)
        return self._in_value_range(x, seed_bits, sample_ids)

    def purify(self, images: Any, *, seed: int | None = None, sample_ids: Any = None) -> Any:
        """Purify images of any supported kind; the result has the same kind, dtype, device and layout.

        Args:
            images: as for :func:`fastmalade.purify`; the full rules are those of :func:`fastmalade.inputs.prepare`.
            seed, sample_ids: see :meth:`forward`.

        Returns:
            Purified images without gradient; an empty result for an empty batch.

        Raises:
            TypeError: wrong kind or dtype.
            ValueError: wrong shape, values out of range, NaN or infinity.
            FloatingPointError: the iteration diverged.
        """
        dtype, device = self._dtype_and_device()
        prepared = prepare(
            images,
            channels=self.channels,
            multiple=self.multiple,
            value_range=self.value_range,
            dtype=dtype,
            device=device,
        )
        with torch.no_grad():
            result = self(prepared.images, seed=seed, sample_ids=sample_ids)
        # The map back to the value range may round a value on its edge to the outside.
        return prepared.restore(result.clamp(*self.value_range))

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Defense:
        """Load a shipped defence or a file of :meth:`save_pretrained`: frozen parameters, eval mode.

        Never runs code from the file and never uses a network.

        Raises:
            FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
            PretrainedError: a damaged or foreign file, or one that holds another defence than ``cls``.
        """
        from fastmalade.defenses.files import load_defense

        return load_defense(name_or_path, cls)

    def save_pretrained(self, path: str | os.PathLike[str], *, training: dict[str, Any] | None = None) -> None:
        """Write networks and settings to one safetensors file, whole or not at all.

        Args:
            path: file to write; an old one is replaced only once the new one is complete.
            training: facts about the training for the header, JSON values.

        Raises:
            TypeError: a network that could not be rebuilt without running code.
        """
        from fastmalade.defenses.files import save_defense

        save_defense(self, path, training=training)

    def _in_value_range(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x.clone()
        if self.value_range == (0.0, 1.0):
            return self._purified(x, seed, sample_ids)
        low, high = self.value_range
        return self._purified((x - low) / (high - low), seed, sample_ids) * (high - low) + low

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        """Purify x (B, C, H, W) in [0, 1] with the randomness of (seed, sample_ids (B,)); differentiable.

        ``seed`` is a number, or int64 (1,) on the device where a CUDA graph is captured: only
        :func:`fastmalade.noise.normals_like` should read it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it purifies")

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
