"""Seeds and sample ids: what the noise of a chain is a function of, besides the step and the element.

torch's global random generator is never read and never advanced: attack libraries reseed it, which would replay the
noise of a defence.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        # Under torch.compile an index would make the graph one for this seed alone.
        value = seed if type(seed) is int else operator.index(seed)  # type: ignore[arg-type]
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


def derive_seed(seed: int, *path: int) -> int:
    """A 64-bit seed for one purpose, from the seed of a whole (an attack, say) and where in it this is (restart, step).

    numpy's ``SeedSequence`` mixes them, so that neighbouring seeds and steps give unrelated noise.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0])
