"""The operator ``fastmalade::langevin_update``: residual, update, noise and clamp of one step, for user modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastmalade import backends, reference
from fastmalade.backends.values import NoiseSource, Step
from fastmalade.chain.observers import is_unobserved
from fastmalade.chain.operators import LIBRARY, UNBOUNDED, clamp_bound, seed_value

LIBRARY.define(
    "langevin_update(Tensor x, Tensor reconstruction, float step_size, float noise_scale, float low, float high, "
    "Tensor seed, Tensor sample_ids, int step, Tensor? noise, str backend) -> Tensor"
)


def run_update(
    x: Tensor,
    reconstruction: Tensor,
    step_size: float,
    noise_scale: float,
    low: float,
    high: float,
    seed: Tensor,
    sample_ids: Tensor,
    step: int,
    noise: Tensor | None,
    backend: str,
) -> Tensor:
    """clamp(x + a (r - x) + d z, low, high) on one backend; nothing is recorded for autograd.

    Args:
        x, reconstruction: (B, ...) of one shape, dtype and device.
        seed: int64 (1,), on the CPU or where the kernels run, and
        sample_ids: int64 (B,), and
        step: the noise of :func:`reference.standard_normal`; not read if ``noise``, of the shape of ``x``, is
            given, or ``noise_scale`` is 0.
        backend: a name that ``backends.resolve`` has returned.

    Returns:
        New contiguous tensor of the shape of ``x``.
    """
    one = Step(step, step_size, noise_scale, clamp_bound(low), clamp_bound(high))
    source = NoiseSource(seed_value(seed), sample_ids, noise)
    module = backends.native(backend)
    if module is not None:
        result: Tensor = module.langevin_update(x, reconstruction, one, source)
    else:
        result = reference.langevin_update(
            x, reconstruction, *one[1:], seed=source.seed, sample_ids=sample_ids, step=step, noise=noise
        )
    return result.contiguous()


LIBRARY.impl("langevin_update", run_update, "CompositeExplicitAutograd")


@torch.library.register_fake("fastmalade::langevin_update", lib=LIBRARY)
def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, reconstruction, *settings, seed, sample_ids, step, noise, backend = inputs
    a, d, low, high = settings
    ctx.settings = (a, d, clamp_bound(low), clamp_bound(high), step, backend)
    ctx.is_clamped = ctx.settings[2] > -math.inf or ctx.settings[3] < math.inf
    if ctx.is_clamped:
        ctx.save_for_backward(x, reconstruction, seed, sample_ids, noise)


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    a, d, low, high, step, backend = ctx.settings
    if ctx.is_clamped:
        # Which elements came from outside the bounds is found by running the step again without them. The state and
        # r(x) are alive anyway, as inputs and outputs of the layers around; a mask would be new memory at every step,
        # and a second result to write in every forward pass.
        x, reconstruction, seed, sample_ids, noise = ctx.saved_tensors
        recorded = torch.is_grad_enabled()
        if (
            backend == "triton"
            and not ctx.needs_input_grad[9]
            and is_unobserved(cotangent, x, noise, recorded=recorded)
        ):
            source = NoiseSource(seed_value(seed), sample_ids, noise)
            gradients = backends.triton.calls.langevin_update_vjp(
                cotangent, x, reconstruction, Step(step, a, d, low, high), source
            )
            return *gradients, *[None] * 9
        free = torch.ops.fastmalade.langevin_update(
            x.detach(),
            reconstruction.detach(),
            a,
            d,
            -UNBOUNDED,
            UNBOUNDED,
            seed,
            sample_ids,
            step,
            None if noise is None else noise.detach(),
            backend,
        )
        # The comparisons of torch.clamp: the bounds belong to the inside, NaN to neither side.
        cotangent = torch.where((free >= low) & (free <= high), cotangent, 0.0)
    # Linear in the cotangent, and the mask is locally constant: a double backward through these operations is exact.
    noise_gradient = d * cotangent if ctx.needs_input_grad[9] else None
    return (1.0 - a) * cotangent, a * cotangent, *[None] * 7, noise_gradient, None


torch.library.register_autograd("fastmalade::langevin_update", _backward, setup_context=_context, lib=LIBRARY)
