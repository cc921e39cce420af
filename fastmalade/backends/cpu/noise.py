"""Noise by the native CPU kernels, and the pass that looks for values out of range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import checked_seed, checked_tensor, is_plain
from fastmalade.backends.cpu.extension import isa_in_use, load, unavailable_reason


def first_outside(values: Tensor, low: float, high: float) -> int | None:
    """Index, in memory order, of the first of ``values`` that is not within [low, high], -1 for none.

    NaN is within no bounds; the bounds are rounded to float32. None where this pass cannot read the values:
    it takes contiguous float32 tensors on the CPU, and the extension.
    """
    if not is_plain(values, torch.float32) or unavailable_reason() is not None:
        return None
    return int(load().check_range(values.data_ptr(), values.numel(), low, high))


def standard_normal(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The noise of one step: float32 (B, n_elements), a function of (seed, sample id, step, element) alone.

    ``seed`` 0 to 2^64 - 1, ``sample_ids`` int64 (B,), ``step`` 0 to 2^32 - 1. Philox4x32-10 words (Salmon et
    al. 2011) through Box and Muller. Raises ValueError for arguments out of range.
    """
    call, _alive = _noise_call(seed, sample_ids, step, n_elements)
    z = torch.empty((call["batch"], n_elements), dtype=torch.float32)
    load().standard_normal(elements=n_elements, z=z.data_ptr(), **call)
    return z


def philox_words(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The words behind ``standard_normal``: int64 (B, 4 ceil(n_elements / 4)), values 0 to 2^32 - 1."""
    call, _alive = _noise_call(seed, sample_ids, step, n_elements)
    counters = -(-n_elements // 4)
    words = torch.empty((call["batch"], 4 * counters), dtype=torch.int64)
    load().philox_words(counters=counters, words=words.data_ptr(), **call)
    return words


def _noise_call(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> tuple[dict[str, Any], object]:
    """What both noise calls of the extension take, and what keeps the addresses alive."""
    ids = checked_tensor("sample_ids", sample_ids, torch.int64, (None,))
    if n_elements < 0:
        raise ValueError(f"n_elements: expected at least 0, got {n_elements}")
    call = {
        "isa": isa_in_use(), "seed": checked_seed(seed), "sample_ids": ids.data_ptr(), "batch": ids.shape[0],
        "step": step, "threads": torch.get_num_threads(),
    }  # fmt: skip
    return call, ids
