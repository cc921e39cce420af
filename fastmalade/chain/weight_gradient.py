"""The weights' part of a chain's gradient, as a node of autograd beside that of the images.

Autograd tells a node which of its inputs require a gradient, never which of them this backward pass asks for. With the
weights as inputs of the chain's own node, ``torch.autograd.grad(y, x)`` through a model that is not frozen would
compute their gradient and throw it away. A node of their own is left out of such a pass. Where both are wanted, one way
back over the chain gives both: the chain's node asks the engine whether this one will run, and leaves it its part.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import WRITTEN_TO
from fastmalade.backends.values import NoiseSource, Steps
from fastmalade.chain import operators
from fastmalade.chain.batched import is_batched, one_by_one
from fastmalade.seeds import check_sample_ids


def weights_part(
    x: Tensor,
    autoencoder: Any,
    weights: tuple[Tensor, ...],
    steps: Steps,
    noise: NoiseSource,
    backend: str,
    max_bytes: int | None,
    precision: str = "fp32",
) -> Tensor:
    """Nothing to add to a chain's result, with the gradient of that result with respect to the weights.

    Args:
        autoencoder: what the weights were found in.
        x, weights, steps, noise: see :func:`operators.evaluate`; at least one weight requires a gradient.
        backend, max_bytes, precision: see :func:`operators.run_chain_backward`.

    Returns:
        (B, C, H, W), the one number that leaves every other as it is when added, zeros of both signs included.
    """
    call = (x.detach(), weights, steps, noise, backend, max_bytes, precision)
    part: Tensor = _apply(call, _joined(autoencoder, weights))
    return part


class _WeightsPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], joined: Tensor) -> Tensor:
        x, weights, *ctx.call = call
        noise = call[3]
        ctx.weights, ctx.versions, ctx.found = weights, list(map(_version, weights)), None
        ctx.save_for_backward(x, noise.sample_ids, noise.given)
        return _nothing(x.shape, x.dtype, x.device).detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, sample_ids, given = ctx.saved_tensors
        found, ctx.found = ctx.found, None
        if found is not None and found[0] is cotangent:
            return None, OnlyOnce.apply(found[1], *ctx.weights) if torch.is_grad_enabled() else found[1]
        steps, noise, backend, max_bytes, precision = ctx.call
        if list(map(_version, ctx.weights)) != ctx.versions:
            raise RuntimeError(WRITTEN_TO)
        ids = check_sample_ids(None, x.shape[0], x.device) if sample_ids is None else sample_ids

        def product(each: Tensor) -> list[Tensor]:
            _x_part, _noise_part, gradients = torch.ops.fastmalade.langevin_chain_backward(
                each, x, ctx.weights, *operators.attributes(steps), operators.seed_bits(noise.seed), ids, given,
                backend, max_bytes, True, False, precision,
            )  # fmt: skip
            return [torch.cat([gradient.flatten() for gradient in gradients])]

        (gradient,) = one_by_one(product, cotangent) if is_batched(cotangent) else product(cotangent)
        return None, gradient


def found_together(part: Any, product: Callable[[], tuple[Tensor, Tensor]], cotangent: Tensor) -> Tensor | None:
    """The images' part of a gradient where this backward pass also asks for the weights', whose part is left for it.

    Args:
        part: the node of :func:`weights_part`, inside the backward pass of the chain that it belongs to.
        product: both parts, the weights' as one vector.
        cotangent: what ``product`` is taken of, and what the node will be given.

    Returns:
        (B, C, H, W); None where the pass does not ask for the weights' part.
    """
    if not torch._C._will_engine_execute_node(part):
        return None
    gradient, of_weights = product()
    part.found = (cotangent, of_weights)
    return gradient


@functools.lru_cache(maxsize=64)
def _nothing(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), -0.0, dtype=dtype, device=device).expand(shape)


class OnlyOnce(torch.autograd.Function):
    """Identity whose backward raises: the chain is differentiable once."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        raise RuntimeError(operators.DOUBLE_BACKWARD)


class _Joined(torch.autograd.Function):
    """Ten weights as one vector that nobody reads, with their gradients one after the other as its gradient."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        return weights[0].new_zeros(()).expand(sum(shape.numel() for shape in ctx.shapes))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = gradient.split([shape.numel() for shape in ctx.shapes])
        return tuple(
            part.reshape(shape).clone() if wanted else None
            for part, shape, wanted in zip(parts, ctx.shapes, ctx.needs_input_grad, strict=True)
        )


# Without what torch.autograd.Function.apply does for transformations of torch.func, none of which sees these calls.
_apply = super(torch.autograd.Function, _WeightsPart).apply

# Ten edges to leaves take as long to make and to take down as a twentieth of a chain on one image.
_known: weakref.WeakKeyDictionary[Any, tuple[tuple[Tensor, ...], list[bool], Tensor]] = weakref.WeakKeyDictionary()
_requires_grad = operator.attrgetter("requires_grad")
_version = operator.attrgetter("_version")


def _joined(autoencoder: Any, weights: tuple[Tensor, ...]) -> Tensor:
    """The vector of :class:`_Joined`, kept for as long as these are the weights."""
    wanted = list(map(_requires_grad, weights))
    known = _known.get(autoencoder)
    if known is not None and all(map(operator.is_, known[0], weights)) and known[1] == wanted:
        return known[2]
    joined: Tensor = _Joined.apply(*weights)
    if all(weight.is_leaf for weight in weights):  # what others lead to may be taken down after the first pass
        _known[autoencoder] = (weights, wanted, joined)
    return joined
