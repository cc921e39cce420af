"""The native chain and its gradient without the dispatcher, for calls that nothing but autograd takes notice of.

A registered operator with ten weights costs about as much as half a chain on one image, there and back. What is
computed is the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends import cpu
from fastmalade.ops import DOUBLE_BACKWARD

# Activations of all steps are kept from the forward pass where they are few and nobody has set a budget: fresh memory
# for more of them would take longer to get than the steps take to run again.
KEPT_BYTES = 8 * 2**20


def langevin_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    settings: tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]],
    *,
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None,
    max_bytes: int | None,
) -> Tensor:
    """:func:`backends.cpu.langevin_chain`, differentiable once with respect to x.

    Args:
        x: float32 (B, C, H, W) that requires a gradient; ``weights`` and ``noise`` require none.
        settings: step sizes, noise scales, lows and highs, N floats each.
        seed, sample_ids, noise: as for the backend.
        max_bytes: budget of the gradient, or None.
    """
    result: Tensor = _Chain.apply(x, tuple(weights), settings, seed, sample_ids, noise, max_bytes)
    return result


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: tuple[Tensor, ...],
        settings: tuple[Sequence[float], ...],
        seed: int,
        sample_ids: Tensor | None,
        noise: Tensor | None,
        max_bytes: int | None,
    ) -> Tensor:
        # Saved so that autograd finds out if one of them is written to before the gradient is taken. For the weights
        # that is done here: ten more saved tensors would take longer than the rest of this function.
        ctx.save_for_backward(x, sample_ids, noise)
        ctx.weights, ctx.versions = weights, [w._version for w in weights]
        ctx.settings, ctx.seed, ctx.max_bytes, ctx.recorded = settings, seed, max_bytes, None
        a, d, low, high = settings
        hidden = weights[0].shape[0], weights[2].shape[0]
        if max_bytes is None and 0 < cpu.recorded_bytes(tuple(x.shape), hidden, len(a)) <= KEPT_BYTES:
            # The result must not be reachable from here: it would hold this context, and the context it.
            result, ctx.recorded = cpu.recorded_chain(
                x, weights, a, d, low, high, seed=seed, sample_ids=sample_ids, noise=noise
            )
            return result
        return cpu.langevin_chain(x, weights, a, d, low, high, seed=seed, sample_ids=sample_ids, noise=noise)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, sample_ids, noise = ctx.saved_tensors
        weights = ctx.weights
        if ctx.versions != [w._version for w in weights]:
            raise RuntimeError(
                "langevin_chain: expected the autoencoder's weights of the forward pass, got weights that were "
                "modified in place since"
            )
        if ctx.recorded is not None:
            gradient = ctx.recorded.gradient(cotangent, weights)
        else:
            gradient = cpu.chain_gradient(
                cotangent,
                x,
                weights,
                *ctx.settings,
                seed=ctx.seed,
                sample_ids=sample_ids,
                noise=noise,
                max_bytes=ctx.max_bytes,
            )
        if torch.is_grad_enabled():
            gradient = _OnlyOnce.apply(gradient, x, cotangent)
        return gradient, None, None, None, None, None, None


class _OnlyOnce(torch.autograd.Function):
    """The gradient as it is; asked for its own gradient, an error."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        raise RuntimeError(DOUBLE_BACKWARD)
