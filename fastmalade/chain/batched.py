"""Cotangents that have been put together, which no kernel can read: products are taken one after the other.

``torch.autograd.grad(..., is_grads_batched=True)`` and ``torch.autograd.functional.jacobian(..., vectorize=True)`` make
an older kind of batched tensor, for which an operator cannot register a rule, ``torch.func.vmap`` the newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def backward_of_many(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    """``langevin_chain_backward`` for cotangents that ``torch.func.vmap`` has put together, one after the other."""

    def of(index: int, argument: Any, dim: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(argument)
            return [of(index, value, d) for value, d in zip(argument, dims, strict=True)]
        return argument if dim is None else argument.select(dim, index)

    found = [
        torch.ops.fastmalade.langevin_chain_backward(
            *(of(index, argument, dim) for argument, dim in zip(arguments, in_dims, strict=True))
        )
        for index in range(info.batch_size)
    ]
    gradients, of_noise, of_weights = zip(*found, strict=True)
    stacked = [torch.stack(parts) for parts in zip(*of_weights, strict=True)]
    return (torch.stack(gradients), torch.stack(of_noise), stacked), (0, 0, [0] * len(stacked))
