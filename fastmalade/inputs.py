"""The input rules of ``purify``: which images are taken, how they are laid out, and what comes back.

Nothing here writes to its input, and no result shares memory with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmalade import backends
from fastmalade.backends.arguments import diverged
from fastmalade.checks import images_of, rounding_of_range

_EXPECTED_DTYPES = "uint8 (0..255), float16, bfloat16, float32 or float64"
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT32 = np.dtype(np.float32)
_NUMPY_DTYPES = ("uint8", "float16", "float32", "float64")


class Prepared(NamedTuple):
    """Images ready for a chain, and the way back.

    Attributes:
        images: (B, C, H, W) in the dtype and on the device of the model, values in the range given; may share memory
            with the caller's images, so it must not be written to.
        restore: maps a result of the same shape to the kind, dtype, device and layout of the caller's images; raises
            FloatingPointError where a value of it is not finite.
    """

    images: Tensor
    restore: Callable[[Tensor], Any]


def prepare(
    images: Any,
    *,
    channels: int | None,
    multiple: int,
    value_range: tuple[float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> Prepared:
    """Check images and bring them into the form (B, C, H, W), floating.

    Taken are torch tensors, numpy arrays and anything else with ``__dlpack__``; uint8 (0..255, mapped to
    ``value_range`` and rounded back) or float16, bfloat16, float32, float64 (values in ``value_range``);
    (B, C, H, W) and (B, H, W, C) if ``channels`` is known, and (H, W) and (B, H, W) if it is 1. Where both
    four-dimensional layouts fit, (B, C, H, W) is taken. With ``channels=None`` only (B, C, H, W) is.

    Values that leave the range by rounding alone are clamped into it: by at most 4 eps max(|low|, |high|), eps of the
    images' dtype and for float64 that of float32. On [0, 1] that is 4.8e-7 for float32, 0.0039 for float16 and 0.031
    for bfloat16: what normalising by mean and standard deviation, or resizing, is off by.

    A result keeps kind, dtype, device and layout. An object that is neither a tensor nor an array comes back
    as its own kind if its namespace has ``from_dlpack`` (array API), else as a torch tensor.

    Args:
        images: what the caller gave.
        channels: channels C of the model, or None if unknown.
        multiple: H and W must be positive multiples of this.
        value_range: (low, high) of floating images.
        dtype, device: of the model.

    Raises:
        TypeError: wrong kind or dtype.
        ValueError: wrong shape, a value out of range by more than rounding, NaN or infinity.
    """
    tensor, rebuild = _as_tensor(images)
    if tensor.dtype != torch.uint8 and tensor.dtype not in _FLOATING:
        raise TypeError(f"images: expected dtype {_EXPECTED_DTYPES}, got {tensor.dtype}")
    to_nchw, from_nchw = _layout(tuple(tensor.shape), channels, multiple)
    low, high = value_range
    if tensor.dtype == torch.uint8:
        values = tensor.to(device).to(dtype) / 255
        if value_range != (0.0, 1.0):
            values = values * (high - low) + low
    else:
        rounded = leaves_by_rounding(tensor, low, high, to_nchw)
        values = _converted(tensor, dtype, device)
        if rounded:
            values = values.clamp(low, high)

    def restore(result: Tensor) -> Any:
        check_finite(result)
        result = from_nchw(result)
        if tensor.dtype == torch.uint8:
            unit = result if value_range == (0.0, 1.0) else (result - low) / (high - low)
            result = (unit * 255).round().clamp(0, 255)
        result = _converted(result, tensor.dtype, tensor.device)
        dense_last = (
            tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        )
        return rebuild(result.contiguous(memory_format=torch.channels_last) if dense_last else result.contiguous())

    return Prepared(to_nchw(values), restore)


def plain_batch(images: Any) -> Tensor | None:
    """A float32 tensor or writable array (B, C, H, W) in memory order as the tensor it is; None for anything else.

    Of such a batch :func:`prepare` would only look at sizes and values, which the kernels do on their way.
    """
    if type(images) is np.ndarray:
        if images.dtype != _FLOAT32 or not images.flags.carray:
            return None
        try:
            images = torch.from_numpy(images)
        except ValueError:
            # Negative strides and parts of elements, which torch refuses also along sides of length 1, where they mean
            # nothing and do not keep numpy from calling an array contiguous: one image of a reversed batch.
            return None
    elif not isinstance(images, Tensor) or images.dtype is not torch.float32:
        return None
    return images if images.ndim == 4 else None


def _torch_strides(images: np.ndarray) -> bool:
    # torch refuses negative strides and parts of elements, also along sides of length 1.
    return all(stride >= 0 and stride % images.itemsize == 0 for stride in images.strides)


def _converted(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return values if values.dtype is dtype and values.device == device else values.to(device=device, dtype=dtype)


def _as_tensor(images: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    if isinstance(images, Tensor):
        if images.layout != torch.strided:
            raise TypeError(f"images: expected a dense (strided) tensor, got layout {images.layout}")
        return images.detach(), lambda result: result
    if isinstance(images, np.ma.MaskedArray):
        raise TypeError("images: expected an array without a mask, got numpy.ma.MaskedArray")
    if isinstance(images, np.ndarray):
        return _from_numpy(images)
    if hasattr(images, "__dlpack__"):
        return torch.from_dlpack(images), lambda result: _to_namespace(images, result)
    raise TypeError(
        f"images: expected a torch tensor, a numpy array or an object with __dlpack__, got {type(images).__name__}"
    )


def _from_numpy(images: np.ndarray) -> tuple[Tensor, Callable[[Tensor], Any]]:
    if images.dtype.name not in _NUMPY_DTYPES:
        raise TypeError(f"images: expected dtype {_EXPECTED_DTYPES}, got {images.dtype}")
    native = images.dtype.newbyteorder("=")
    # torch takes neither read-only arrays (without a warning) nor foreign byte order.
    if not images.flags.writeable or images.dtype != native or not _torch_strides(images):
        tensor = torch.from_numpy(np.array(images, dtype=native, order="C", subok=False))
    else:
        tensor = torch.from_numpy(np.asarray(images))
    return tensor, lambda result: result.numpy().astype(images.dtype, copy=False)


def _to_namespace(images: Any, result: Tensor) -> Any:
    namespace = getattr(images, "__array_namespace__", None)
    return result if namespace is None else namespace().from_dlpack(result)


def _layout(
    shape: tuple[int, ...], channels: int | None, multiple: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def fits(*sides: int) -> bool:
        return all(side > 0 and side % multiple == 0 for side in sides)

    if len(shape) == 4 and shape[1] == (channels or shape[1]) and shape[1] > 0 and fits(*shape[2:]):
        return lambda t: t, lambda t: t
    if len(shape) == 4 and shape[3] == channels and fits(*shape[1:3]):
        return lambda t: t.permute(0, 3, 1, 2), lambda t: t.permute(0, 2, 3, 1)
    if channels == 1 and len(shape) == 3 and fits(*shape[1:]):
        return lambda t: t[:, None], lambda t: t[:, 0]
    if channels == 1 and len(shape) == 2 and fits(*shape):
        return lambda t: t[None, None], lambda t: t[0, 0]
    layouts = {None: "(B, C, H, W)", 1: "(H, W), (B, H, W), (B, 1, H, W) or (B, H, W, 1)"}
    expected = layouts.get(channels, f"(B, {channels}, H, W) or (B, H, W, {channels})")
    sides = "positive" if multiple == 1 else f"positive multiples of {multiple}"
    raise ValueError(f"images: expected shape {expected} with H and W {sides}, got {shape}")


def check_finite(result: Tensor) -> None:
    """Raise FloatingPointError where a value of ``result`` (B, C, H, W) is NaN or infinite."""
    largest = torch.finfo(result.dtype).max
    if not _within(result, -largest, largest):
        raise diverged(result)


def leaves_by_rounding(
    images: Tensor, low: float, high: float, to_nchw: Callable[[Tensor], Tensor] = lambda images: images
) -> bool:
    """Whether values leave [low, high], by no more than :func:`fastmalade.checks.rounding_of_range`.

    Args:
        images: floating, of any layout: a copy in another one would be a pass over the batch.
        low, high: the range.
        to_nchw: ``images`` as (B, C, H, W), for the message.

    Raises:
        ValueError: values that leave it by more, NaN, or infinity; counts them and names the first image.
    """
    # Bounds rounded to the dtype of the images: one that the dtype cannot hold is still in range.
    low_held, high_held = _held(low, high, images.dtype)
    if _within(images, low_held, high_held):
        return False
    slack = rounding_of_range(images.dtype, low, high)
    if _within(images, low_held - slack, high_held + slack):
        return True
    batch = to_nchw(images)
    batch = batch.float() if batch.itemsize < 4 else batch
    for found, bad in (("NaN", batch.isnan()), ("infinity", batch.isinf())):
        if bool(bad.any()):
            raise ValueError(
                f"images: expected finite values in [{low}, {high}], got {found}: {images_of(bad)}, counting from 0"
            )
    smallest, largest = (float(v) for v in torch.aminmax(batch))
    bad = (batch < low_held - slack) | (batch > high_held + slack)
    raise ValueError(
        f"images: expected {images.dtype} values in [{low}, {high}], "
        f"got values from {smallest} to {largest}; rescale them, or set value_range on the Purifier "
        f"({images_of(bad)}, counting from 0)"
    )


@functools.lru_cache(maxsize=64)
def _held(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The two bounds rounded to a dtype."""
    low_held, high_held = torch.tensor([low, high], dtype=dtype).tolist()
    return low_held, high_held


def _within(values: Tensor, low: float, high: float) -> bool:
    """Whether all values are at least ``low`` and at most ``high``; NaN is not. True for no values."""
    if values.numel() == 0:
        return True
    offending = backends.cpu.calls.first_outside(values, low, high)
    if offending is not None:
        return offending < 0
    smallest, largest = torch.aminmax(values.float() if values.itemsize < 4 else values)
    return float(smallest) >= low and float(largest) <= high
