"""The chain as operators of ``torch.library``, so that autograd, torch.compile and torch.export see one node.

    fastmalade::langevin_chain            all N steps of the Table 8 autoencoder; differentiable once
    fastmalade::langevin_chain_backward   its vector-Jacobian product, the noise replayed from its counters
    fastmalade::standard_normal           noise of one step, where a transformation needs torch's own operations
    fastmalade::fill_fresh_seed_          writes 64 bits of the operating system into a seed tensor

The seed travels as an int64 (1,) CPU tensor (the unsigned seed's bits). The chain is thereby a pure function of its
inputs, which compilers may reorder or merge, and the only impure operator writes into a tensor of its own: two calls
inside one compiled graph keep two seeds, and a compiled graph draws afresh each time it runs. The operator of one step
for user modules is in ``update_operator.py``.

Where a step has no bound, operators take ``UNBOUNDED`` in place of infinity: AOTInductor packages write attributes as
JSON, which has no infinity, and do not load with one.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade import backends, reference
from fastmalade.backends.values import NoiseSource, Steps
from fastmalade.chain.batched import backward_of_many, is_batched, one_by_one
from fastmalade.chain.gradient import ChainGradient, split_like
from fastmalade.noise import draw
from fastmalade.seeds import check_sample_ids, fresh_seed, signed64

DOUBLE_BACKWARD = (
    "langevin_chain is differentiable once: expected a first-order gradient, got a double backward; "
    "second derivatives are available through fastmalade.reference.langevin_chain"
)

UNBOUNDED = sys.float_info.max

LIBRARY = torch.library.Library("fastmalade", "FRAGMENT")
_CHAIN_ARGUMENTS = (
    "Tensor x, Tensor[] weights, float[] step_sizes, float[] noise_scales, float[] lows, float[] highs, "
    "Tensor seed, Tensor sample_ids, Tensor? noise, str backend, int? max_bytes"
)
LIBRARY.define(f"langevin_chain({_CHAIN_ARGUMENTS}, str precision='fp32') -> Tensor")
LIBRARY.define(
    f"langevin_chain_backward(Tensor cotangent, {_CHAIN_ARGUMENTS}, "
    "bool weight_gradients, bool noise_gradient, str precision='fp32') -> (Tensor, Tensor, Tensor[])"
)
LIBRARY.define("standard_normal(Tensor seed, Tensor sample_ids, int step, Tensor like, str backend) -> Tensor")
LIBRARY.define("fill_fresh_seed_(Tensor(a!) seed) -> ()", tags=(torch.Tag.nondeterministic_seeded,))


def drawn_seed() -> int | Tensor:
    """A fresh seed from the operating system; inside a compiled graph a tensor that is filled at each of its runs."""
    if not torch.compiler.is_compiling():
        return fresh_seed()
    buffer = torch.empty(1, dtype=torch.int64)
    torch.ops.fastmalade.fill_fresh_seed_(buffer)
    return buffer


def seed_bits(seed: int | Tensor) -> Tensor:
    """The seed of a noise source as an operator takes it: a tensor as it is, a number as int64 (1,) on the CPU."""
    return seed if isinstance(seed, Tensor) else torch.tensor([signed64(seed)], dtype=torch.int64)


def attributes(steps: Steps) -> list[list[float]]:
    """Steps as operators take them: step sizes, noise scales, lows and highs."""
    lows, highs = ([finite(bound) for bound in bounds] for bounds in (steps.lows, steps.highs))
    return [list(steps.step_sizes), list(steps.noise_scales), lows, highs]


def finite(bound: float) -> float:
    """A clamp bound as operators take it."""
    return max(-UNBOUNDED, min(bound, UNBOUNDED))


def clamp_bound(value: float) -> float:
    """The clamp bound that an operator was given."""
    return value if -UNBOUNDED < value < UNBOUNDED else math.copysign(math.inf, value)


def _steps(
    step_sizes: Sequence[float], noise_scales: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> Steps:
    return Steps(tuple(step_sizes), tuple(noise_scales), tuple(map(clamp_bound, lows)), tuple(map(clamp_bound, highs)))


def seed_value(seed: Tensor) -> int | Tensor:
    """What a backend takes: the number of a seed on the CPU, the tensor itself of one on a GPU."""
    # A seed on a GPU stays there: reading it would wait for the device, and a captured graph has to read it at each
    # replay (executor).
    return int(seed.item()) % 2**64 if seed.is_cpu else seed


def _standard_strides(x: Tensor) -> Tensor:
    # Images of one channel are contiguous under two sets of strides, by which torch's convolutions choose
    # their memory format and thereby their rounding. Flat and back leaves one: layout changes no result.
    return x.contiguous().flatten().view(x.shape)


def run_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    seed: Tensor,
    sample_ids: Tensor,
    noise: Tensor | None,
    backend: str,
    max_bytes: int | None = None,
    precision: str = "fp32",
    *,
    trajectory: bool = False,
) -> Tensor:
    """Evaluate the chain of the Table 8 autoencoder on one backend; nothing is recorded for autograd.

    Args:
        x: (B, C, H, W), the dtype and device of ``weights`` (ten tensors).
        step_sizes, noise_scales, lows, highs: N floats each.
        seed: int64 (1,), on the CPU or where the kernels run; not read if ``noise`` (N, B, C, H, W) is given.
        sample_ids: int64 (B,).
        backend: a name that ``backends.resolve`` has returned.
        max_bytes: the gradient's; not read here.
        precision: of the products; ValueError where the backend does not take it.

    Returns:
        New contiguous (B, C, H, W), or (N + 1, B, C, H, W) with ``trajectory``.
    """
    steps = _steps(step_sizes, noise_scales, lows, highs)
    source = NoiseSource(seed_value(seed), sample_ids, noise)
    return evaluate(x, weights, steps, source, backend, precision, trajectory=trajectory)


def evaluate(
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    backend: str,
    precision: str = "fp32",
    *,
    trajectory: bool = False,
) -> Tensor:
    """:func:`run_chain` of values: the seed of ``noise`` is what the backend takes, sample ids are given."""
    option = _precision_option(precision, backend)
    x = _standard_strides(x)
    if x.numel() == 0 or steps.n_steps == 0:
        return torch.stack([x] * (steps.n_steps + 1)) if trajectory else x.clone()
    module = backends.native(backend)
    if module is not None:
        result: Tensor = module.langevin_chain(x, weights, steps, noise, trajectory=trajectory, **option)
        return result
    return reference.langevin_chain(
        x,
        functools.partial(reference.autoencoder_forward, weights=weights),
        steps.step_sizes,
        steps.noise_scales,
        lows=steps.lows,
        highs=steps.highs,
        seed=noise.seed,
        sample_ids=noise.sample_ids,
        noise=noise.given,
        trajectory=trajectory,
    ).contiguous()


def call_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    backend: str,
    max_bytes: int | None,
    precision: str,
) -> Tensor:
    """The operator ``langevin_chain`` of values, with numbered sample ids where there are none."""
    ids = check_sample_ids(None, x.shape[0], x.device) if noise.sample_ids is None else noise.sample_ids
    settings: Any = attributes(steps)
    result: Tensor = torch.ops.fastmalade.langevin_chain.default(
        x, list(weights), *settings, seed_bits(noise.seed), ids, noise.given, backend, max_bytes, precision
    )
    return result


def chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    backend: str,
    max_bytes: int | None,
) -> Tensor:
    """The operator ``langevin_chain_backward`` of values, for the images alone."""
    ids = check_sample_ids(None, x.shape[0], x.device) if noise.sample_ids is None else noise.sample_ids
    found: tuple[Tensor, Tensor, list[Tensor]] = torch.ops.fastmalade.langevin_chain_backward(
        cotangent, x, weights, *attributes(steps), seed_bits(noise.seed), ids, noise.given, backend, max_bytes,
        False, False,
    )  # fmt: skip
    return found[0]


def run_chain_backward(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    seed: Tensor,
    sample_ids: Tensor,
    noise: Tensor | None,
    backend: str,
    max_bytes: int | None,
    weight_gradients: bool,
    noise_gradient: bool,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Vector-Jacobian product of :func:`run_chain` for the noise that it drew.

    The native backends have it whole for the images, "cpu" also for the weights. For the rest, and on the "torch"
    backend, the steps are run again on the same backend with the same noise and differentiated by
    :func:`reference.autoencoder_vjp`. A clamp lets the
    gradient through on the closed interval and stops it outside, as ``torch.clamp`` does.

    Args:
        cotangent: (B, C, H, W), gradient with respect to the result.
        max_bytes: budget for what is kept meanwhile (``gradient_plan.py``), None for its default. The gradient has the
            same bits under every budget.
        weight_gradients, noise_gradient: whether these are wanted.
        precision: that of the chain, whose states the products are taken at.

    Returns:
        Gradients with respect to x (B, C, H, W), noise (N, B, C, H, W) and the ten weights; empty where not
        wanted.
    """
    cotangent = _standard_strides(cotangent)
    steps = _steps(step_sizes, noise_scales, lows, highs)
    source = NoiseSource(seed_value(seed), sample_ids, noise)
    module = backends.native(backend)
    option = _precision_option(precision, backend)
    if module is not None and not (weight_gradients or noise_gradient):
        gradient = module.chain_gradient(
            cotangent, _standard_strides(x), weights, steps, source, max_bytes=max_bytes, **option
        )
        return gradient, x.new_empty(0), []
    if backend == "cpu" and not noise_gradient:
        gradient, flat = backends.cpu.calls.chain_and_weight_gradients(
            cotangent, _standard_strides(x), weights, steps, source, max_bytes=max_bytes
        )
        return gradient, x.new_empty(0), split_like(flat, weights)

    def drawn(step: int) -> Tensor:
        return noise_of_step(x, source, backend, step)

    def run(state: Tensor, first: int, count: int) -> Tensor:
        # Explicit noise: a chain of these steps alone would draw that of steps 0, 1, ...
        given = torch.stack(
            [drawn(step) if noise_scales[step] != 0.0 else torch.zeros_like(x) for step in range(first, first + count)]
        )
        part = steps.part(first, count)
        return evaluate(state, weights, part, NoiseSource(source.seed, sample_ids, given), backend, precision)

    return ChainGradient(x, weights, steps, run, drawn, weight_gradients, noise_gradient).evaluate(cotangent, max_bytes)


def _precision_option(precision: str, backend: str) -> dict[str, str]:
    # Those of the CPU have no such argument.
    if precision == "fp32":
        return {}
    backends.check_precision(precision, backend)
    return {"precision": precision}


def noise_of_step(x: Tensor, noise: NoiseSource, backend: str, step: int) -> Tensor:
    """z of one step for images x: (B, C, H, W)."""
    if noise.given is not None:
        return noise.given[step]
    assert noise.sample_ids is not None
    return draw(noise.seed, noise.sample_ids, step, x.shape[1:], dtype=x.dtype, device=x.device, backend=backend)


def _standard_normal(seed: Tensor, sample_ids: Tensor, step: int, like: Tensor, backend: str) -> Tensor:
    return draw(
        seed_value(seed),
        sample_ids,
        step,
        like.shape[1:],
        dtype=like.dtype,
        device=like.device,
        backend=backend,
    )


def _fill_fresh_seed(seed: Tensor) -> None:
    seed.fill_(signed64(fresh_seed()))


LIBRARY.impl("langevin_chain", run_chain, "CompositeExplicitAutograd")
LIBRARY.impl("langevin_chain_backward", run_chain_backward, "CompositeExplicitAutograd")
LIBRARY.impl("standard_normal", _standard_normal, "CompositeExplicitAutograd")
LIBRARY.impl("fill_fresh_seed_", _fill_fresh_seed, "CompositeExplicitAutograd")


@torch.library.register_fake("fastmalade::langevin_chain", lib=LIBRARY)
def _chain_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("fastmalade::langevin_chain_backward", lib=LIBRARY)
def _chain_backward_fake(
    cotangent: Tensor, x: Tensor, weights: Sequence[Tensor], step_sizes: Sequence[float], *rest: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    # After noise scales, bounds, seed, ids, noise, backend and budget; a precision may follow.
    weight_gradients, noise_gradient = rest[8:10]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty((len(step_sizes), *x.shape) if noise_gradient else (0,)),
        [torch.empty_like(w) for w in weights] if weight_gradients else [],
    )


@torch.library.register_fake("fastmalade::standard_normal", lib=LIBRARY)
def _standard_normal_fake(seed: Tensor, sample_ids: Tensor, step: int, like: Tensor, backend: str) -> Tensor:
    return like.new_empty(like.shape)


@torch.library.register_fake("fastmalade::fill_fresh_seed_", lib=LIBRARY)
def _fill_fresh_seed_fake(seed: Tensor) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, step_sizes, noise_scales, lows, highs, seed, sample_ids, noise, backend, max_bytes, precision = inputs
    ctx.save_for_backward(x, seed, sample_ids, noise, *weights)
    ctx.settings = (step_sizes, noise_scales, lows, highs)
    ctx.backend = backend
    ctx.max_bytes = max_bytes
    ctx.precision = precision


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    x, seed, sample_ids, noise, *weights = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    wants_weights = any(wanted[1])

    def product(each: Tensor) -> list[Tensor]:
        gradient, of_noise, of_weights = torch.ops.fastmalade.langevin_chain_backward(
            each, x, weights, *ctx.settings, seed, sample_ids, noise, ctx.backend, ctx.max_bytes, wants_weights,
            wanted[8], ctx.precision,
        )  # fmt: skip
        return [gradient, of_noise, *of_weights]

    gradient, noise_gradient, *weight_gradients = (
        one_by_one(product, cotangent) if is_batched(cotangent) else product(cotangent)
    )
    gradients = (
        gradient,
        weight_gradients if wants_weights else [None] * len(weights),
        # For autograd an empty list of floats is an empty list of tensors, and is answered by its like.
        *([] if len(values) == 0 else None for values in ctx.settings),
        None,
        None,
        noise_gradient if wanted[8] else None,
        None,
        None,
        None,
    )
    # The dispatcher takes a precision that is the default off the arguments, and expects no gradient for it.
    return gradients[: len(wanted)]


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    return None


def _no_second_derivative(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
    raise RuntimeError(DOUBLE_BACKWARD)


def _no_gradient(ctx: Any, cotangent: Tensor) -> tuple[None, ...]:
    # Noise is a constant: of ``like`` only shape, dtype and device are read.
    return None, None, None, None, None


torch.library.register_autograd("fastmalade::standard_normal", _no_gradient, setup_context=_no_context, lib=LIBRARY)
torch.library.register_autograd("fastmalade::langevin_chain", _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(
    "fastmalade::langevin_chain_backward", _no_second_derivative, setup_context=_no_context, lib=LIBRARY
)

torch.library.register_vmap("fastmalade::langevin_chain_backward", backward_of_many, lib=LIBRARY)
