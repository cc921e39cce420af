"""The native chain and its gradient without the dispatcher, for calls that nothing but autograd takes notice of.

A registered operator with ten weights costs about as much as half a chain on one image, there and back; the checks in
Python cost a third. What is computed is the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import PLAIN_TYPES
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.cpu import plain as cpu_plain
from fastmalade.backends.cpu.plain import Settings
from fastmalade.chain.observers import is_unobserved
from fastmalade.chain.operators import DOUBLE_BACKWARD
from fastmalade.models import Autoencoder
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed

# Activations of all steps are kept from the forward pass where they are few and nobody has set a budget: fresh memory
# for more of them would take longer to get than the steps take to run again.
KEPT_BYTES = 8 * 2**20


Gradient = Callable[[Tensor], Tensor]
"""From the gradient with respect to a chain's result to that with respect to its images."""


def plain_chain(
    x: Any,
    autoencoder: Any,
    settings: Settings,
    *,
    backend: str | None,
    seed: int | None = None,
    sample_ids: Any = None,
    noise: Any = None,
    gradients: bool = True,
    precision: str = "fp32",
    max_bytes: int | None = None,
    checked: bool = False,
    **others: Any,
) -> Tensor | None:
    """:func:`fastmalade.chain.call.run` for a plain float32 batch, with all else of the ordinary kind.

    Anything that is not, arguments with errors included, is left to the general way. So is a gradient with a budget,
    and one for a batch whose activations are not kept.

    Args:
        x: images (B, C, H, W) on [0, 1], or anything.
        settings: of a ``ChainConfig``: step sizes, noise scales, lows and highs, N floats each.
        backend, seed, sample_ids, noise, gradients, precision, max_bytes, others: as there.
        checked: for a batch with every value in [0, 1] only, and with a look at the result.

    Returns:
        The result, or None where this is not the way.

    Raises:
        TypeError, ValueError: a wrong seed or wrong sample ids.
        FloatingPointError: with ``checked``, a result that is not finite.
    """
    if (
        type(autoencoder) is not Autoencoder
        or type(x) not in PLAIN_TYPES
        or backend not in (None, "cpu")
        or noise is not None
        or precision != "fp32"
        or others.get("trajectory", False)
        or others.get("seed_bits") is not None
        or not x.is_cpu
        or x.ndim != 4
        or not is_unobserved(recorded=False)
    ):
        return None
    recorded = gradients and torch.is_grad_enabled()
    seed = fresh_seed() if seed is None else check_seed(seed)
    ids = None if sample_ids is None else check_sample_ids(sample_ids, x.shape[0], x.device)
    modules = autoencoder._modules
    if not recorded or not x.requires_grad:
        options = {"any_backend": backend is None, "recorded": recorded, "checked": checked}
        return cpu_plain.plain_chain(x, modules, settings, seed=seed, sample_ids=ids, **options)
    if max_bytes is not None:
        return None
    try:
        result: Tensor = _apply(x, ids, None, _plain_recorded, modules, settings, seed, ids, backend is None)
    except _NotPlainError:
        return None
    return result


class _NotPlainError(Exception):
    """Not the ordinary case after all."""


def _plain_recorded(
    x: Tensor, modules: Any, settings: Settings, seed: int, sample_ids: Tensor | None, any_backend: bool
) -> tuple[Tensor, Gradient]:
    found = cpu_plain.plain_recorded_chain(
        x, modules, settings, seed=seed, sample_ids=sample_ids, any_backend=any_backend, most_bytes=KEPT_BYTES
    )
    if found is None:
        raise _NotPlainError
    return found[0], found[1].gradient


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
    """:func:`backends.cpu.calls.langevin_chain`, differentiable once with respect to x.

    Args:
        x: float32 (B, C, H, W) that requires a gradient; ``weights`` and ``noise`` require none.
        settings: step sizes, noise scales, lows and highs, N floats each.
        seed, sample_ids, noise: as for the backend.
        max_bytes: budget of the gradient, or None.
    """
    result: Tensor = _apply(
        x,
        sample_ids,
        noise,
        _run,
        tuple(weights),
        settings,
        seed,
        sample_ids,
        noise,
        max_bytes,
    )
    return result


def _run(
    x: Tensor,
    weights: tuple[Tensor, ...],
    settings: tuple[Sequence[float], ...],
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None,
    max_bytes: int | None,
) -> tuple[Tensor, Gradient]:
    a, d, low, high = settings
    hidden = weights[0].shape[0], weights[2].shape[0]
    # Saving ten more tensors for autograd to watch would take longer than the rest of this function.
    versions = [w._version for w in weights]
    arguments: Any = (x, weights, a, d, low, high)
    options: Any = {"seed": seed, "sample_ids": sample_ids, "noise": noise}
    recorded = None
    if max_bytes is None and 0 < cpu.recorded_bytes(tuple(x.shape), hidden, len(a)) <= KEPT_BYTES:
        result, recorded = cpu.recorded_chain(*arguments, **options)
    else:
        result = cpu.langevin_chain(*arguments, **options)

    # The result must not be reachable from here: it would hold the graph that holds this function.
    def gradient(cotangent: Tensor) -> Tensor:
        if versions != [w._version for w in weights]:
            raise RuntimeError(
                "langevin_chain: expected the autoencoder's weights of the forward pass, got weights that were "
                "modified in place since"
            )
        if recorded is not None:
            return recorded.gradient(cotangent)
        return cpu.chain_gradient(cotangent, *arguments, **options, max_bytes=max_bytes)

    return result, gradient


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sample_ids: Tensor | None,
        noise: Tensor | None,
        run: Callable[..., tuple[Tensor, Gradient]],
        *arguments: Any,
    ) -> Tensor:
        # Saved so that autograd finds out if one of them is written to before the gradient is taken.
        ctx.save_for_backward(x, sample_ids, noise)
        result, ctx.gradient = run(x, *arguments)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, _sample_ids, _noise = ctx.saved_tensors
        gradient = ctx.gradient(cotangent)
        if torch.is_grad_enabled():
            gradient = _OnlyOnce.apply(gradient, x, cotangent)
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


# What torch.autograd.Function.apply does besides, unwrapping what transformations of torch.func have left, is not for
# calls that no transformation sees.
_apply = super(torch.autograd.Function, _Chain).apply


class _OnlyOnce(torch.autograd.Function):
    """The gradient as it is; asked for its own gradient, an error."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        raise RuntimeError(DOUBLE_BACKWARD)
