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

_SIGNED_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64)
_INTEGER_DTYPES = (*_SIGNED_DTYPES, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


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

    The ids of a tensor on a GPU are not looked at, which would make the call wait for the GPU, nor those of a tensor or
    an array inside ``torch.compile``, where they are not known yet: a negative one counts as the id with its 64 bits.

    Args:
        sample_ids: None for 0..B-1, or B integers: tensor, numpy array or sequence, 0 <= id < 2**64. Ids of 2**63 and
            more are Python ints, or uint64 in an array or a tensor. Equal ids get equal noise.
        batch: B.
        device: device of the result.

    Raises:
        TypeError: not integers.
        ValueError: not of shape (B,), or an id that is negative or above 2**64 - 1.
    """
    if sample_ids is None:
        return torch.arange(batch, dtype=torch.int64, device=device)
    if not isinstance(sample_ids, Tensor):
        sample_ids = _traced_ids(sample_ids) if torch.compiler.is_compiling() else _from_numbers(sample_ids)
    elif sample_ids.dtype in _SIGNED_DTYPES and _can_be_read(sample_ids):
        _check_signs(sample_ids.numpy())
    if sample_ids.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"sample_ids: expected an integer tensor, got {sample_ids.dtype}")
    if tuple(sample_ids.shape) != (batch,):
        raise ValueError(f"sample_ids: expected shape ({batch},), got {tuple(sample_ids.shape)}")
    if sample_ids.dtype is torch.uint64:
        sample_ids = sample_ids.view(torch.int64)
    return sample_ids.to(device=device, dtype=torch.int64)


def _can_be_read(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read at no cost: a plain one on the CPU, not traced or transformed."""
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def _check_signs(ids: np.ndarray) -> None:
    if ids.size and ids.min() < 0:
        place = int((ids.reshape(-1) < 0).argmax())
        raise _out_of_range(int(ids.reshape(-1)[place]), place)


def _out_of_range(value: int, place: int) -> ValueError:
    return ValueError(f"sample_ids: expected 0 <= id < 2**64, got {value} at index {place}")


def _from_numbers(sample_ids: Any) -> Tensor:
    """An array or a sequence as an int64 tensor of its own: the caller's may be read-only, and must not be changed."""
    try:
        array = np.asarray(sample_ids)
    except ValueError:
        raise ValueError("sample_ids: expected shape (B,), got sequences of different lengths") from None
    if array.dtype.kind not in "iu":
        # numpy makes floats of a list with ids on both sides of 2**63, and of an empty one.
        if isinstance(sample_ids, np.ndarray):
            raise TypeError(f"sample_ids: expected integers, got dtype {array.dtype}")
        try:
            values = [_index(value) for value in sample_ids]
            if len(values) != array.size:
                raise TypeError
        except TypeError:
            raise TypeError(
                f"sample_ids: expected integers, got {type(sample_ids).__name__} of {array.dtype}"
            ) from None
        for place, value in enumerate(values):
            if not 0 <= value < 2**64:
                raise _out_of_range(value, place)
        array = np.array(values, dtype=np.uint64)
    if array.dtype.kind == "i":
        _check_signs(array)
    return torch.from_numpy(array.astype(np.uint64).view(np.int64))


def _traced_ids(sample_ids: Any) -> Tensor:
    """What ``torch.compile`` can put into a graph: an array as a tensor, a sequence as the ints that it holds."""
    if isinstance(sample_ids, np.ndarray):
        return torch.from_numpy(sample_ids)
    if isinstance(sample_ids, range):
        first, end, step = sample_ids.start, sample_ids.stop, sample_ids.step
        if 0 <= first <= end < 2**63 and step > 0:
            # One graph for all ranges: the compiler does not go through one whose ends it takes as arguments.
            return torch.arange(first, end, step)
        sample_ids = range(operator.index(first), operator.index(end), operator.index(step))
    ids = []
    for place, value in enumerate(sample_ids):
        number = _index(value) if isinstance(value, bool) or not isinstance(value, int) else value
        if not 0 <= number < 2**64:
            raise _out_of_range(number, place)
        # operator.index makes a constant of an int that the graph would otherwise take as a signed argument.
        ids.append(operator.index(number) - 2**64 if number >= 2**63 else number)
    return torch.tensor(ids, dtype=torch.int64)


def _index(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"sample_ids: expected integers, got {type(value).__name__}")
    return operator.index(value)


def derive_seed(seed: int, *path: int) -> int:
    """A 64-bit seed for one purpose, from the seed of a whole (an attack, say) and where in it this is (restart, step).

    numpy's ``SeedSequence`` mixes them, so that neighbouring seeds and steps give unrelated noise.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0])
