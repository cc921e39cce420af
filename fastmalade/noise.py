"""The noise of a chain as callers see it: seeds, sample ids, and the normals themselves.

The noise depends on (seed, sample id, step, element) and on nothing else. torch's global random generator is
never read and never advanced: attack libraries reseed it, which would replay the noise of a defence.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmalade import backends, reference

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def fresh_seed() -> int:
    """64 bits from the operating system, as 0 <= seed < 2**64."""
    return int.from_bytes(os.urandom(8), "little")


def check_seed(seed: object) -> int:
    """``seed`` as a Python int.

    Raises:
        TypeError: not an integer.
        ValueError: outside 0 <= seed < 2**64.
    """
    try:
        if isinstance(seed, (bool, Tensor)):
            raise TypeError
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed: expected an int with 0 <= seed < 2**64 or None, got {type(seed).__name__}") from None
    if not 0 <= value < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {value}")
    return value


def signed64(value: int) -> int:
    """An unsigned 64-bit value as the signed one with the same bits: operator schemas hold int64."""
    return value - 2**64 if value >= 2**63 else value


def check_sample_ids(sample_ids: Any, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """``sample_ids`` as int64 (B,) on ``device``; ids of 2**63 and more keep their 64 bits.

    Args:
        sample_ids: None for 0..B-1, or B integers: tensor, numpy array or sequence, 0 <= id < 2**64.
            Equal ids get equal noise.
        batch: B.
        device: device of the result.

    Raises:
        TypeError: not integers.
        ValueError: not of shape (B,).
    """
    if sample_ids is None:
        return torch.arange(batch, dtype=torch.int64, device=device)
    if not isinstance(sample_ids, Tensor):
        array = _integer_array(sample_ids)
        unsigned = array.dtype.kind == "u"
        # A copy: the caller's array may be read-only, and it must not be possible to change it from here.
        array = array.astype(np.uint64 if unsigned else np.int64).view(np.int64)
        sample_ids = torch.from_numpy(array)
    if sample_ids.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"sample_ids: expected an integer tensor, got {sample_ids.dtype}")
    if tuple(sample_ids.shape) != (batch,):
        raise ValueError(f"sample_ids: expected shape ({batch},), got {tuple(sample_ids.shape)}")
    return sample_ids.to(device=device, dtype=torch.int64)


def _integer_array(sample_ids: Any) -> np.ndarray:
    array = np.asarray(sample_ids)
    if array.dtype.kind not in "iu" and not isinstance(sample_ids, np.ndarray):
        # numpy makes floats of a list with ids on both sides of 2**63, and of an empty one.
        try:
            values = [operator.index(value) % 2**64 for value in sample_ids]
            if any(isinstance(value, bool) for value in sample_ids) or len(values) != array.size:
                raise TypeError
        except TypeError:
            raise TypeError(
                f"sample_ids: expected integers, got {type(sample_ids).__name__} of {array.dtype}"
            ) from None
        if any(not -(2**63) <= value < 2**64 for value in sample_ids):
            raise ValueError(f"sample_ids: expected 0 <= id < 2**64, got up to {max(sample_ids)}")
        return np.array(values, dtype=np.uint64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"sample_ids: expected integers, got dtype {array.dtype}")
    return array


def standard_normal(
    seed: int, sample_ids: Any, step: int, shape: Sequence[int], *, backend: str | None = None
) -> Tensor:
    """The standard normal noise z_t that step ``step`` of a chain adds.

    Philox4x32-10 words and Box-Muller; the exact recipe is in :mod:`fastmalade.reference`. The "cpu" backend
    computes it in float32 and may differ from "torch" (float64 rounded once) by a few units in the last
    place.

    Args:
        seed: int, 0 <= seed < 2**64.
        sample_ids: (B,) integers; the result lies on the device of a tensor, else on the CPU.
        step: step t of the chain, 0 <= step < 2**32.
        shape: shape of one sample, usually (C, H, W).
        backend: as for :func:`fastmalade.langevin_chain`.

    Returns:
        float32 (B,) + shape.

    Raises:
        TypeError: seed, sample ids or step are not integers.
        ValueError: one of them is out of its range.
        BackendUnavailableError: the backend asked for cannot run here.
    """
    seed = check_seed(seed)
    step = operator.index(step)
    if not 0 <= step < 2**32:
        raise ValueError(f"step: expected 0 <= step < 2**32, got {step}")
    size = tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in size) or math.prod(size) > 2**34:
        raise ValueError(f"shape: expected non-negative sizes and at most 2**34 elements, got {size}")
    device = sample_ids.device if isinstance(sample_ids, Tensor) else torch.device("cpu")
    ids = check_sample_ids(sample_ids, len(sample_ids), device)
    name = backends.resolve(backend, device=device, dtype=torch.float32)
    return draw(seed, ids, step, size, dtype=torch.float32, device=device, backend=name)


def normals_like(x: Tensor, seed: int | Tensor, sample_ids: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """:func:`standard_normal` of checked arguments in the dtype and on the device of x, by the backend that serves x.

    A ``seed`` of int64 (1,) is read where x lies when the kernels run; the "cpu" backend takes numbers only, and torch
    stands in for it then.

    Returns:
        (B,) + shape.
    """
    backend = backends.resolve(None, device=x.device, dtype=x.dtype)
    if isinstance(seed, Tensor) and backend == "cpu":
        backend = "torch"
    return draw(seed, sample_ids, step, shape, dtype=x.dtype, device=x.device, backend=backend)


def draw(
    seed: int | Tensor,
    sample_ids: Tensor,
    step: int,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    backend: str,
) -> Tensor:
    """:func:`standard_normal` for arguments already checked and a backend already chosen: (B,) + shape.

    A ``seed`` of int64 (1,) on a CUDA device is read there, when the kernels run.
    """
    module = backends.native(backend)
    if module is None:
        return reference.standard_normal(seed, sample_ids, step, shape, dtype=dtype, device=device)
    flat: Tensor = module.standard_normal(seed, sample_ids, step, math.prod(shape))
    return flat.reshape(sample_ids.shape[0], *shape)
