"""The Langevin chain: argument checks, choice of the backend, and one call.

A Table 8 ``Autoencoder`` runs as one operator, all N steps of the whole batch. Any other callable r(x) runs step
by step: its forward in torch, the Langevin update that follows as one operator, with the same noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmalade import backends, reference
from fastmalade.backends.gradient_plan import check_max_bytes
from fastmalade.chain import direct
from fastmalade.chain import operators as ops
from fastmalade.chain.checkpointing import run_checkpointed
from fastmalade.chain.config import ChainConfig
from fastmalade.chain.observers import is_transformed, is_unobserved
from fastmalade.chain.update_operator import run_update
from fastmalade.models import Autoencoder
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed

ClampSteps = Literal["every", "final"]


def langevin_chain(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    step_sizes: Sequence[float] | Tensor,
    noise_scales: Sequence[float] | Tensor,
    *,
    seed: int | None = None,
    sample_ids: Any = None,
    noise: Tensor | None = None,
    backend: str | None = None,
    clamp: tuple[float, float] | None = None,
    clamp_steps: ClampSteps = "every",
    max_bytes: int | None = None,
    precision: str = "fp32",
) -> Tensor:
    """N steps of x <- x + a_t (r(x) - x) + d_t z_t (000 eq. 10, 001 eq. 10), differentiable once.

    The gradient is the exact derivative of the computation for the noise that it drew, with respect to
    ``x``, to the parameters of the autoencoder and to ``noise``.

    Args:
        x: floating (B, C, H, W), in the autoencoder's dtype and on its device. For a Table 8 autoencoder H
            and W are multiples of 4. Never written to.
        autoencoder: r, (B, C, H, W) -> (B, C, H, W). An :class:`fastmalade.Autoencoder` runs on the backend;
            any other callable runs in torch, and the backend computes the Langevin update. An output of
            another floating dtype, as under ``torch.autocast``, is converted to that of ``x``.
        step_sizes: N finite floats a_t; they multiply the residual r(x) - x directly (alpha / sigma^2).
        noise_scales: N finite floats d_t >= 0, standard deviations. Where one is 0 no noise is drawn.
        seed: 0 <= seed < 2**64; None draws a fresh one from the operating system at every call. With
            ``torch.utils.checkpoint``, which runs the forward pass twice, give a seed.
        sample_ids: B integers that number the images for the noise; 0..B-1 by default. Results depend on
            seed and id only, never on the batch an image came in.
        noise: explicit (N, B, C, H, W) noise instead of ``seed`` and ``sample_ids``, in the dtype of ``x``.
        backend: "torch", "cpu", "cuda" or "triton"; by default ``FASTMALADE_BACKEND``, else chosen by dtype and device.
        clamp: (low, high) bounds, or None. The gradient of the clamp is that of ``torch.clamp``.
        clamp_steps: clamp after "every" step or after the "final" one.
        max_bytes: budget for the working memory of the gradient; by default 8 MiB for each thread on the backend
            "cpu" (what ten steps take where that is more, up to 256 MiB), and 256 MiB on "torch". Less memory is
            paid for by running steps again, as :meth:`Purifier.gradient_plan` shows; the gradient has the same
            bits. Without a budget, batches whose activations take less than 8 MiB keep them, and run nothing
            again. For any other callable r(x) None lets autograd keep what it wants, and a budget goes through
            ``torch.utils.checkpoint`` (not inside ``torch.compile``, which decides by itself).
        precision: "fp32", or on the backends "cuda" and "triton" one of ``backends.PRECISIONS`` for a Table 8
            autoencoder: its convolutions then run on tensor cores, with the errors that docs/architecture.md states.
            The gradient is taken at the states of that chain.

    Returns:
        New contiguous (B, C, H, W) tensor; a copy of ``x`` for N = 0.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or value, unknown backend, ``noise`` together with ``seed`` or ``sample_ids``.
        BackendUnavailableError: the backend asked for cannot run this.
        RuntimeError: at a double backward.
    """
    a, d = _floats("step_sizes", step_sizes), _floats("noise_scales", noise_scales)
    lows, highs = _bounds(clamp, clamp_steps, len(a))
    return run(
        x,
        autoencoder,
        a,
        d,
        lows,
        highs,
        seed=seed,
        sample_ids=sample_ids,
        noise=noise,
        backend=backend,
        max_bytes=max_bytes,
        precision=precision,
    )


def langevin_trajectory(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    step_sizes: Sequence[float] | Tensor,
    noise_scales: Sequence[float] | Tensor,
    *,
    seed: int | None = None,
    sample_ids: Any = None,
    noise: Tensor | None = None,
    backend: str | None = None,
    clamp: tuple[float, float] | None = None,
    clamp_steps: ClampSteps = "every",
    precision: str = "fp32",
) -> Tensor:
    """All states of :func:`langevin_chain`: (N + 1, B, C, H, W), entry 0 is ``x``; without gradients.

    Arguments and errors are those of :func:`langevin_chain`.
    """
    a, d = _floats("step_sizes", step_sizes), _floats("noise_scales", noise_scales)
    lows, highs = _bounds(clamp, clamp_steps, len(a))
    return run(
        x,
        autoencoder,
        a,
        d,
        lows,
        highs,
        seed=seed,
        sample_ids=sample_ids,
        noise=noise,
        backend=backend,
        trajectory=True,
        precision=precision,
    )


def is_native_autoencoder(autoencoder: object) -> bool:
    """Whether this is a Table 8 autoencoder whose forward nobody has overridden."""
    return isinstance(autoencoder, Autoencoder) and type(autoencoder).forward is Autoencoder.forward


def run(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    seed: int | None = None,
    sample_ids: Any = None,
    noise: Tensor | None = None,
    backend: str | None = None,
    trajectory: bool = False,
    gradients: bool = True,
    max_bytes: int | None = None,
    seed_bits: Tensor | None = None,
    precision: str = "fp32",
) -> Tensor:
    """:func:`langevin_chain` with clamp bounds per step (N floats each), or all states.

    Without ``gradients``, and for a ``trajectory``, nothing is recorded for autograd. ``seed_bits``, int64 (1,), stands
    for a ``seed`` that is read where the kernels run, at the time they run (executor).
    """
    weights = None
    if is_native_autoencoder(autoencoder):
        assert isinstance(autoencoder, Autoencoder)
        weights = autoencoder.weights()
    _check_images(x, autoencoder, weights)
    _check_noise(x, step_sizes, noise_scales, noise, seed=seed, sample_ids=sample_ids)
    name = _resolve(backend, x.device, x.dtype, model_on_gpu(x, autoencoder))
    if precision != "fp32":
        backends.check_precision(precision, name)
        if weights is None:
            raise ValueError(f"precision: expected fp32 for an r(x) that is no Table 8 Autoencoder, got {precision!r}")
    if noise is not None:
        seed = 0  # not read
    elif seed is not None:
        seed = check_seed(seed)
    ids = None if sample_ids is None else check_sample_ids(sample_ids, x.shape[0], x.device)
    settings = (step_sizes, noise_scales, lows, highs)
    recorded = gradients and not trajectory and torch.is_grad_enabled()
    if max_bytes is not None:
        max_bytes = check_max_bytes(max_bytes)
    if weights is None:
        with torch.set_grad_enabled(recorded):
            return _run_callable(x, autoencoder, *settings, seed, seed_bits, ids, noise, name, trajectory, max_bytes)
    module = backends.native(name)
    if module is not None and is_unobserved(x, noise, *weights, recorded=False):
        # A seed that is read where the kernels run, at the time they run, is the executor's.
        number: Any = seed_bits if seed_bits is not None else fresh_seed() if seed is None else seed
        others = (noise, *weights)
        others_recorded = recorded and any(tensor is not None and tensor.requires_grad for tensor in others)
        if not others_recorded and not (recorded and x.requires_grad):
            evaluate = module.langevin_chain
            if precision != "fp32":
                evaluate = functools.partial(evaluate, precision=precision)
            result: Tensor = evaluate(
                x, weights, *settings, seed=number, sample_ids=ids, noise=noise, trajectory=trajectory
            )
            return result
        if name == "cpu" and not others_recorded:
            return direct.langevin_chain(
                x, weights, settings, seed=number, sample_ids=ids, noise=noise, max_bytes=max_bytes
            )
    if ids is None:
        ids = check_sample_ids(None, x.shape[0], x.device)
    bits = ops.seed_tensor(seed) if seed_bits is None else seed_bits
    arguments: Any = (x, list(weights), *map(list, settings), bits, ids, noise, name, max_bytes, precision)
    with torch.set_grad_enabled(recorded):
        if trajectory:
            return ops.run_chain(*arguments, trajectory=True)
        return torch.ops.fastmalade.langevin_chain.default(*arguments)


def run_chain(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    config: ChainConfig,
    value_range: tuple[float, float],
    **options: Any,
) -> Tensor:
    """:func:`run` with the settings of a :class:`ChainConfig`, images in and out in ``value_range``."""
    low, high = value_range
    is_unit = value_range == (0.0, 1.0)
    # Under torch.compile the settings are constants, so skip the cache.
    compiling = torch.compiler.is_compiling()
    settings = (*config.schedule(), *config.clamp_bounds()) if compiling else config.settings
    scaled = x if is_unit or not isinstance(x, Tensor) else (x - low) / (high - low)
    result = run(scaled, autoencoder, *settings, **options)
    return result if is_unit else result * (high - low) + low


def _run_callable(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    seed: int | None,
    seed_bits: Tensor | None,
    sample_ids: Tensor | None,
    noise: Tensor | None,
    backend: str,
    trajectory: bool,
    max_bytes: int | None,
) -> Tensor:
    if x.shape[0] == 0 or len(step_sizes) == 0:
        # A module of the user's need not cope with an empty batch.
        return torch.stack([x] * (len(step_sizes) + 1)) if trajectory else x.clone()
    seed_bits = ops.seed_tensor(seed) if seed_bits is None else seed_bits
    ids = check_sample_ids(None, x.shape[0], x.device) if sample_ids is None else sample_ids

    def checked(state: Tensor) -> Tensor:
        reconstruction = autoencoder(state)
        if reconstruction.shape != state.shape:
            raise ValueError(
                f"autoencoder: expected an output of the shape of its input {tuple(state.shape)}, "
                f"got {tuple(reconstruction.shape)}"
            )
        if not reconstruction.is_floating_point():
            raise TypeError(f"autoencoder: expected a floating output, got {reconstruction.dtype}")
        return reconstruction if reconstruction.dtype == state.dtype else reconstruction.to(state.dtype)

    # Forward-mode differentiation, vmap and the like go through torch's own operations.
    in_torch = backend == "torch" or (not torch.compiler.is_compiling() and is_transformed())

    def advance(state: Tensor, step: int) -> Tensor:
        a, d, low, high = (values[step] for values in (step_sizes, noise_scales, lows, highs))
        z = None if noise is None else noise[step]
        reconstruction = checked(state)
        if in_torch:
            if z is None and d != 0.0:
                z = torch.ops.fastmalade.standard_normal(seed_bits, ids, step, state, backend)
            return reference.langevin_step(state, reconstruction, a, d, z, low=low, high=high).contiguous()
        arguments: Any = (state, reconstruction, a, d, low, high, seed_bits, ids, step, z, backend)
        direct = is_unobserved(state, reconstruction, z, recorded=torch.is_grad_enabled())
        return run_update(*arguments) if direct else torch.ops.fastmalade.langevin_update.default(*arguments)

    if max_bytes is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return run_checkpointed(advance, x, len(step_sizes), max_bytes)
    states = [x]
    for step in range(len(step_sizes)):
        state = advance(states[-1], step)
        states = [*states, state] if trajectory else [state]
    return torch.stack(states) if trajectory else states[-1]


def model_on_gpu(x: Tensor, autoencoder: Any) -> backends.ModelShape | None:
    """Sizes on which the choice of a backend depends: of a Table 8 autoencoder on a GPU, which has to fit the chip."""
    if not x.is_cuda or not is_native_autoencoder(autoencoder):
        return None
    return backends.ModelShape((x.shape[1], x.shape[2], x.shape[3]), autoencoder.hidden_channels)


def _resolve(
    backend: str | None, device: torch.device, dtype: torch.dtype, model: backends.ModelShape | None = None
) -> str:
    return backends.resolve(backend, device=device, dtype=dtype, model=model)


# Constant for torch.compile: a graph keeps the backend that was chosen when it was traced. This is all that
# torch.compiler.assume_constant_result does, besides importing torch._dynamo, which an `import fastmalade` should not
# pay for; tests/core/test_ops.py compiles a chain and would show if the name changed.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_images(
    x: Tensor, autoencoder: Callable[[Tensor], Tensor], weights: tuple[Tensor, ...] | None = None
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"x: expected shape (B, C, H, W), got {tuple(x.shape)}")
    if isinstance(autoencoder, Autoencoder):
        autoencoder.check_shape(x.shape)
    if isinstance(autoencoder, nn.Module):
        # The first parameter stands for all: they share a device, and torch itself reports mixed dtypes. The
        # dtypes inside a module of the user's are its own business.
        first = weights[0] if weights else next(autoencoder.parameters(), None)
        own_dtype = isinstance(autoencoder, Autoencoder)
        if first is not None and (first.device != x.device or (own_dtype and first.dtype != x.dtype)):
            raise TypeError(
                f"x: expected the autoencoder's {first.dtype} on {first.device}, got {x.dtype} on {x.device}"
            )
    elif not callable(autoencoder):
        raise TypeError(f"autoencoder: expected a callable r(x), got {type(autoencoder).__name__}")


def _check_noise(
    x: Tensor,
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    noise: Tensor | None,
    *,
    seed: int | None,
    sample_ids: Any,
) -> None:
    if len(step_sizes) != len(noise_scales):
        raise ValueError(f"expected as many step sizes as noise scales, got {len(step_sizes)} and {len(noise_scales)}")
    if len(noise_scales) > 0 and min(noise_scales) < 0:
        raise ValueError(f"noise_scales: expected values >= 0, got {min(noise_scales)}")
    if noise is None:
        return
    if seed is not None or sample_ids is not None:
        raise ValueError("expected either noise or seed and sample_ids, got both")
    expected = (len(step_sizes), *x.shape)
    if not isinstance(noise, Tensor) or noise.dtype != x.dtype or noise.device != x.device:
        got = f"{noise.dtype} on {noise.device}" if isinstance(noise, Tensor) else type(noise).__name__
        raise TypeError(f"noise: expected a tensor of {x.dtype} on {x.device}, got {got}")
    if tuple(noise.shape) != expected:
        raise ValueError(f"noise: expected shape (N, B, C, H, W) = {expected}, got {tuple(noise.shape)}")


def _floats(name: str, values: Sequence[float] | Tensor) -> list[float]:
    try:
        floats = [float(v) for v in values]
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of floats, got {type(values).__name__} {values!r}") from None
    if not all(math.isfinite(v) for v in floats):
        raise ValueError(f"{name}: expected finite values, got {floats}")
    return floats


def _bounds(clamp: tuple[float, float] | None, clamp_steps: str, n_steps: int) -> tuple[list[float], list[float]]:
    if clamp_steps not in ("every", "final"):
        raise ValueError(f"clamp_steps: expected 'every' or 'final', got {clamp_steps!r}")
    if clamp is None:
        return [-math.inf] * n_steps, [math.inf] * n_steps
    low, high = (float(bound) for bound in clamp)
    if not low <= high:
        raise ValueError(f"clamp: expected (low, high) with low <= high, got ({low}, {high})")
    free = 0 if clamp_steps == "every" else max(n_steps - 1, 0)
    return (
        [-math.inf] * free + [low] * (n_steps - free),
        [math.inf] * free + [high] * (n_steps - free),
    )
