"""The native chain on a CPU, and its gradient, without torch's dispatcher: for calls that are ordinary.

A registered operator with ten weights costs about as much as half a chain on one image, there and back, and the checks
of the general way a third. What is computed is the same, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import PLAIN_TYPES, WRITTEN_TO
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import Execution, NoiseSource, Steps
from fastmalade.chain import operators
from fastmalade.chain.batched import is_batched, one_by_one
from fastmalade.chain.observers import is_unobserved, transforms_active
from fastmalade.chain.weight_gradient import OnlyOnce, found_together, weights_part

# Activations of all steps are kept from the forward pass where they are few and no budget is set: getting fresh memory
# for more of them would take longer than running the steps again.
KEPT_BYTES = 8 * 2**20


def run(
    x: Any,
    autoencoder: Any,
    steps: Steps,
    noise: NoiseSource,
    how: Execution,
    gradients: bool,
    inspect: bool = False,
) -> Tensor | None:
    """The chain of an ordinary call, differentiable once with respect to x and weights; None where it is not ordinary.

    Ordinary is a plain float32 batch on the CPU through this package's own autoencoder while nothing looks on. This is
    the one place that decides it; what is not ordinary takes the general way, errors included. So does a gradient with
    respect to given noise.

    Args:
        x, autoencoder, steps, noise, how: as for :func:`fastmalade.chain.call.run`, not yet checked.
        gradients: record for autograd where it is switched on.
        inspect: run only if every value of x lies in [0, 1], and look through the result.

    Returns:
        (B, C, H, W), or None; also where ``inspect`` finds a value outside.

    Raises:
        FloatingPointError: with ``inspect``, a result that is not finite.
    """
    if (
        type(x) not in PLAIN_TYPES
        or not x.is_cpu
        or how.precision != "fp32"
        or type(noise.seed) is not int
        or not is_unobserved(recorded=False)
        or cpu.unavailable_reason() is not None
        or (how.backend or cpu.environment("FASTMALADE_BACKEND") or "cpu") != "cpu"
    ):
        return None
    recorded = gradients and torch.is_grad_enabled()
    if recorded and noise.given is not None and noise.given.requires_grad:
        return None
    model = cpu.model_of(x, autoencoder)
    if model is None:
        return None
    part = None
    if recorded and model.requires_grad():
        part = weights_part(x, autoencoder, model.tensors, steps, noise, "cpu", how.max_bytes)
    if not recorded or (part is None and not x.requires_grad):
        return cpu.inspected_chain(x, model, steps, noise, inspect)
    result: Tensor = _apply(x, noise.sample_ids, noise.given, part, (model, steps, noise, how.max_bytes))
    return result


class _Chain(torch.autograd.Function):
    """The chain, and its gradient for the weights of now: an error once these have been written to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sample_ids: Tensor | None,
        given: Tensor | None,
        part: Tensor | None,
        call: tuple[Any, Steps, NoiseSource, int | None],
    ) -> Tensor:
        model, steps, noise, max_bytes = call
        # Saved so that autograd finds out if one of them is written to before the gradient is taken. Saving the weights
        # as well would take longer than the rest of this function.
        ctx.save_for_backward(x, sample_ids, given)
        keeps = max_bytes is None and x.requires_grad
        found = cpu.recorded_chain_of(x, model, steps, noise, KEPT_BYTES) if keeps else None
        ctx.call, ctx.part = call, None if part is None else part.grad_fn
        if found is not None:
            result, ctx.kept = found
            return result
        ctx.kept, ctx.versions = None, model.versions()
        plain = cpu.inspected_chain(x, model, steps, noise, False)
        assert plain is not None
        return plain

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        # The part of the weights (weight_gradient.py) takes the cotangent as it is, and takes it from there.
        part = None if ctx.part is None else cotangent
        x, _sample_ids, _given = ctx.saved_tensors
        if not x.requires_grad:
            return None, None, None, part, None
        if is_batched(cotangent):
            (gradient,) = one_by_one(lambda each: [_product(ctx, each, x)], cotangent)
        else:
            both = None
            if part is not None and not transforms_active():
                both = found_together(ctx.part, lambda: _both_products(ctx, cotangent, x), cotangent)
            gradient = _product(ctx, cotangent, x) if both is None else both
        if torch.is_grad_enabled():
            gradient = OnlyOnce.apply(gradient, x, cotangent)
        return gradient, None, None, part, None


def _product(ctx: Any, cotangent: Tensor, x: Tensor) -> Tensor:
    if ctx.kept is not None and not transforms_active():
        gradient: Tensor = ctx.kept.gradient(cotangent)
        return gradient
    model, steps, noise, max_bytes = ctx.call
    if ctx.versions != model.versions() if ctx.kept is None else ctx.kept.weights_written_to():
        raise RuntimeError(WRITTEN_TO)
    if transforms_active():  # another kind of batched cotangents, for which the operator has a rule
        return operators.chain_gradient(cotangent, x, model.tensors, steps, noise, "cpu", max_bytes)
    return cpu.chain_gradient(cotangent, x, model.tensors, steps, noise, max_bytes=max_bytes)


def _both_products(ctx: Any, cotangent: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    model, steps, noise, max_bytes = ctx.call
    if ctx.versions != model.versions() if ctx.kept is None else ctx.kept.weights_written_to():
        raise RuntimeError(WRITTEN_TO)
    return cpu.chain_and_weight_gradients(cotangent, x, model.tensors, steps, noise, max_bytes=max_bytes)


# torch.autograd.Function.apply also unwraps what transformations of torch.func have left; no transformation sees these
# calls.
_apply = super(torch.autograd.Function, _Chain).apply
