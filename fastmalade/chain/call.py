"""The Langevin chain: argument checks, choice of the backend, and one call.

A Table 8 ``Autoencoder`` runs as one operator, all N steps of the whole batch. Any other callable r(x) runs step
by step: its forward in torch, the Langevin update that follows as one operator, with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.backends.gradient_plan import check_max_bytes
from fastmalade.backends.values import Execution, NoiseSource, Steps
from fastmalade.chain import direct, operators
from fastmalade.chain.any_module import run_module
from fastmalade.chain.config import ChainConfig, ClampSteps, checked_steps
from fastmalade.chain.observers import is_transformed, is_unobserved
from fastmalade.chain.weight_gradient import weights_part
from fastmalade.models import Autoencoder
from fastmalade.models.table8 import is_native_autoencoder, native_weights
from fastmalade.seeds import check_sample_ids, check_seed

DEFAULT_EXECUTION = Execution()


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
    clamp_steps: ClampSteps = "every_step",
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
        sample_ids: B integers that number the images for the noise, 0 <= id < 2**64 and those from 2**63 on as Python
            ints or uint64; 0..B-1 by default. Results depend on seed and id only, never on the batch an image came in.
            The ids of a tensor on a GPU are not looked at: a negative one counts as the id with its 64 bits.
        noise: explicit (N, B, C, H, W) noise instead of ``seed`` and ``sample_ids``, in the dtype of ``x``.
        backend: "torch", "cpu", "cuda" or "triton"; by default ``FASTMALADE_BACKEND``, else chosen by dtype and device.
        clamp: (low, high) bounds, or None. The gradient of the clamp is that of ``torch.clamp``.
        clamp_steps: clamp after "every_step" or after the "final" one.
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
    steps = checked_steps(step_sizes, noise_scales, clamp, clamp_steps)
    source = noise_source(x, steps.n_steps, seed=seed, sample_ids=sample_ids, noise=noise)
    # Checked here, because a call that records nothing never looks at the budget.
    budget = None if max_bytes is None else check_max_bytes(max_bytes)
    return run(x, autoencoder, steps, source, Execution(backend, budget, precision))


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
    clamp_steps: ClampSteps = "every_step",
    precision: str = "fp32",
) -> Tensor:
    """All states of :func:`langevin_chain`: (N + 1, B, C, H, W), entry 0 is ``x``; without gradients.

    Arguments and errors are those of :func:`langevin_chain`.
    """
    steps = checked_steps(step_sizes, noise_scales, clamp, clamp_steps)
    source = noise_source(x, steps.n_steps, seed=seed, sample_ids=sample_ids, noise=noise)
    return run(x, autoencoder, steps, source, Execution(backend, None, precision), trajectory=True)


def noise_source(
    x: Tensor, n_steps: int, *, seed: int | None = None, sample_ids: Any = None, noise: Tensor | None = None
) -> NoiseSource:
    """Where the noise of a chain of ``n_steps`` from ``x`` (B, C, H, W) comes from, checked.

    Arguments and errors are those of :func:`langevin_chain`; a seed of None is drawn here.
    """
    ids = None
    if noise is not None:
        _check_tensor(x)
        _check_noise(x, n_steps, noise, seed=seed, sample_ids=sample_ids)
        seed = 0  # not read
    elif sample_ids is not None:
        _check_tensor(x)
        ids = check_sample_ids(sample_ids, x.shape[0], x.device)
    return NoiseSource(operators.drawn_seed() if seed is None else check_seed(seed), ids, noise)


def run(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    steps: Steps,
    noise: NoiseSource,
    how: Execution = DEFAULT_EXECUTION,
    *,
    gradients: bool = True,
    trajectory: bool = False,
) -> Tensor:
    """:func:`langevin_chain` of values.

    Args:
        x, autoencoder: see there.
        steps: what the steps do.
        noise: of :func:`noise_source`.
        how: backend, budget of the gradient, precision.
        gradients: record for autograd where it is switched on.
        trajectory: return all states, (N + 1, B, C, H, W); nothing is recorded.

    Raises:
        TypeError, ValueError, BackendUnavailableError, RuntimeError: see :func:`langevin_chain`.
    """
    if not trajectory:
        result = direct.run(x, autoencoder, steps, noise, how, gradients)
        if result is not None:
            return result
    return _run_generally(x, autoencoder, steps, noise, how, gradients=gradients, trajectory=trajectory)


def run_chain(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    config: ChainConfig,
    value_range: tuple[float, float],
    noise: NoiseSource,
    how: Execution,
    **options: bool,
) -> Tensor:
    """:func:`run` with the settings of a :class:`ChainConfig`, images in and out in ``value_range``."""
    # Under torch.compile the settings are constants, so skip the cache.
    steps = config.steps() if torch.compiler.is_compiling() else config.settings
    if value_range == (0.0, 1.0):
        return run(x, autoencoder, steps, noise, how, **options)
    low, high = value_range
    return run((x - low) / (high - low), autoencoder, steps, noise, how, **options) * (high - low) + low


def _run_generally(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    steps: Steps,
    noise: NoiseSource,
    how: Execution,
    *,
    gradients: bool,
    trajectory: bool,
) -> Tensor:
    weights = native_weights(autoencoder)
    _check_images(x, autoencoder, weights)
    backend = _resolve(how.backend, x.device, x.dtype, model_on_gpu(x, autoencoder))
    if how.precision != "fp32":
        backends.check_precision(how.precision, backend)
        if weights is None:
            raise ValueError(
                f"precision: expected fp32 for an r(x) other than a Table 8 Autoencoder, got {how.precision!r}"
            )
    recorded = gradients and not trajectory and torch.is_grad_enabled()
    with torch.set_grad_enabled(recorded):
        if weights is None or (not torch.compiler.is_compiling() and is_transformed()):
            options: Any = {"max_bytes": how.max_bytes, "trajectory": trajectory}
            return run_module(x, autoencoder, steps, noise, backend, **options)
        if trajectory or (not recorded and is_unobserved(x, noise.given, *weights, recorded=False)):
            ids = check_sample_ids(None, x.shape[0], x.device) if noise.sample_ids is None else noise.sample_ids
            source = noise._replace(sample_ids=ids)
            return operators.evaluate(x, weights, steps, source, backend, how.precision, trajectory=trajectory)
        trained = any(weight.requires_grad for weight in weights)
        apart = trained and (noise.given is None or not noise.given.requires_grad) and is_unobserved(recorded=False)
        if not apart:
            return operators.call_chain(x, weights, steps, noise, backend, how.max_bytes, how.precision)
        constants = [weight.detach() for weight in weights]
        result = operators.call_chain(x, constants, steps, noise, backend, how.max_bytes, how.precision)
        part = weights_part(x, autoencoder, weights, steps, noise, backend, how.max_bytes, how.precision)
        return torch.add(result, part)


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
# pay for; tests/chain/test_operators.py compiles a chain and would show if the name changed.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_tensor(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"x: expected shape (B, C, H, W), got {tuple(x.shape)}")


def _check_images(
    x: Tensor, autoencoder: Callable[[Tensor], Tensor], weights: tuple[Tensor, ...] | None = None
) -> None:
    _check_tensor(x)
    if isinstance(autoencoder, Autoencoder):
        autoencoder.check_shape(x.shape)
    if isinstance(autoencoder, nn.Module):
        # The first parameter stands for all: they share a device, and torch itself reports mixed dtypes. What dtypes
        # another module uses inside is its own business.
        first = weights[0] if weights else next(autoencoder.parameters(), None)
        own_dtype = isinstance(autoencoder, Autoencoder)
        if first is not None and (first.device != x.device or (own_dtype and first.dtype != x.dtype)):
            cast = (
                ""
                if first.dtype == x.dtype
                else (f"; convert it with x.to({first.dtype}), for instance where a layer under torch.autocast made it")
            )
            raise TypeError(
                f"x: expected the autoencoder's {first.dtype} on {first.device}, got {x.dtype} on {x.device}{cast}"
            )
    elif not callable(autoencoder):
        raise TypeError(f"autoencoder: expected a callable r(x), got {type(autoencoder).__name__}")


def _check_noise(x: Tensor, n_steps: int, noise: Tensor, *, seed: int | None, sample_ids: Any) -> None:
    if seed is not None or sample_ids is not None:
        raise ValueError("expected either noise or seed and sample_ids, got both")
    expected = (n_steps, *x.shape)
    if not isinstance(noise, Tensor) or noise.dtype != x.dtype or noise.device != x.device:
        got = f"{noise.dtype} on {noise.device}" if isinstance(noise, Tensor) else type(noise).__name__
        raise TypeError(f"noise: expected a tensor of {x.dtype} on {x.device}, got {got}")
    if tuple(noise.shape) != expected:
        raise ValueError(f"noise: expected shape (N, B, C, H, W) = {expected}, got {tuple(noise.shape)}")
