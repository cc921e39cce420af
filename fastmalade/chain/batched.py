"""Cotangents that ``torch.autograd.grad(..., is_grads_batched=True)`` has put together, which no kernel can read.

So does ``torch.autograd.functional.jacobian(..., vectorize=True)``. This is the older kind of batched tensor, for which
an operator cannot register a rule; products are taken one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor  # type: ignore[attr-defined]
"""Whether a tensor is such a batch."""


def one_by_one(product: Callable[[Tensor], list[Tensor]], cotangents: Tensor) -> list[Tensor]:
    """What ``product`` gives for each of the cotangents, put together in the same way."""
    level = torch._C._vmapmode_increment_nesting() - 1  # type: ignore[attr-defined]
    torch._C._vmapmode_decrement_nesting()  # type: ignore[attr-defined]
    each = torch._remove_batch_dim(cotangents, level, 1, 0)
    found = zip(*[product(cotangent) for cotangent in each], strict=True)
    return [torch._add_batch_dim(torch.stack(parts), 0, level) for parts in found]
