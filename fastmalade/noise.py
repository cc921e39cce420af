"""The noise of a chain: standard normals that depend on (seed, sample id, step, element) and on nothing else.

Which backend computes them is chosen as for a chain; seeds and ids are checked in :mod:`fastmalade.seeds`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade import backends, reference
from fastmalade.seeds import check_sample_ids, check_seed


def standard_normal(
    seed: int, sample_ids: Any, step: int, shape: Sequence[int], *, backend: str | None = None
) -> Tensor:
    """The standard normal noise z_t that step ``step`` of a chain adds.

    Philox4x32-10 words and Box-Muller; the exact recipe is in :mod:`fastmalade.reference`. The "cpu" backend
    computes it in float32 and may differ from "torch" (float64 rounded once) by a few units in the last
    place.

    Args:
        seed: int, 0 <= seed < 2**64.
        sample_ids: (B,) integers, 0 <= id < 2**64; the result lies on the device of a tensor, else on the CPU.
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
