"""A chain of any r(x): its forward runs in torch, step by step, and the Langevin update after it as one operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastmalade import reference
from fastmalade.backends.values import NoiseSource, Steps
from fastmalade.chain.observers import is_transformed, is_unobserved
from fastmalade.chain.operators import finite, seed_bits
from fastmalade.chain.update_operator import run_update
from fastmalade.seeds import check_sample_ids

Advance = Callable[[Tensor, int], Tensor]
"""From the state before a step and the number of the step to the state after it."""


def run_module(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    steps: Steps,
    noise: NoiseSource,
    backend: str,
    *,
    max_bytes: int | None,
    trajectory: bool,
) -> Tensor:
    """All steps of a chain, or all states with ``trajectory``; arguments are checked.

    Inside ``torch.func`` and forward-mode differentiation all of it, noise included, is torch's own operations, which
    these know how to transform.

    ``backend`` computes the updates. With ``max_bytes`` and recording autograd the gradient keeps to that budget.
    """
    n_steps = steps.n_steps
    if x.shape[0] == 0 or n_steps == 0:
        # Not every module copes with an empty batch.
        return torch.stack([x] * (n_steps + 1)) if trajectory else x.clone()
    transformed = not torch.compiler.is_compiling() and is_transformed()
    seed = seed_bits(noise.seed)
    ids = check_sample_ids(None, x.shape[0], x.device) if noise.sample_ids is None else noise.sample_ids

    def drawn(state: Tensor, step: int) -> Tensor:
        if transformed:
            return reference.standard_normal(noise.seed, ids, step, state.shape[1:], dtype=x.dtype, device=x.device)
        z: Tensor = torch.ops.fastmalade.standard_normal(seed, ids, step, state, backend)
        return z

    def advance(state: Tensor, step: int) -> Tensor:
        a, d, low, high = steps.at(step)
        z = None if noise.given is None else noise.given[step]
        reconstruction = _checked_reconstruction(autoencoder, state)
        if backend == "torch" or transformed:
            if z is None and d != 0.0:
                z = drawn(state, step)
            return reference.langevin_step(state, reconstruction, a, d, z, low=low, high=high).contiguous()
        unobserved = is_unobserved(state, reconstruction, z, recorded=torch.is_grad_enabled())
        update = run_update if unobserved else torch.ops.fastmalade.langevin_update.default
        result: Tensor = update(state, reconstruction, a, d, finite(low), finite(high), seed, ids, step, z, backend)
        return result

    if max_bytes is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return run_checkpointed(advance, x, n_steps, max_bytes)
    states = [x]
    for step in range(n_steps):
        state = advance(states[-1], step)
        states = [*states, state] if trajectory else [state]
    return torch.stack(states) if trajectory else states[-1]


def _checked_reconstruction(autoencoder: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    reconstruction = autoencoder(state)
    if reconstruction.shape != state.shape:
        raise ValueError(
            f"autoencoder: expected an output of the shape of its input {tuple(state.shape)}, "
            f"got {tuple(reconstruction.shape)}"
        )
    if not reconstruction.is_floating_point():
        raise TypeError(f"autoencoder: expected a floating output, got {reconstruction.dtype}")
    return reconstruction if reconstruction.dtype == state.dtype else reconstruction.to(state.dtype)


def run_checkpointed(advance: Advance, x: Tensor, n_steps: int, max_bytes: int) -> Tensor:
    """All steps, recorded for autograd within a budget of bytes, by ``torch.utils.checkpoint``.

    What one step keeps is measured, by recording the first one. If all steps fit nothing is run twice; if not, the
    chain is cut into segments that backward runs again one by one, and where the states between them would be too
    many, into segments of segments.

    Args:
        advance: (state, number of the step) -> next state, the same whenever it is run again.
        x: (B, ...).
        n_steps: N >= 1.
        max_bytes: budget for states and for what autograd keeps of the steps that are recorded at once.

    Raises:
        ValueError: the budget does not hold one step.
    """
    record, state = _saved_bytes(advance, x), x.numel() * x.element_size()
    if n_steps * record <= max_bytes:
        return _run(advance, x, 0, n_steps)
    # Every level of the cut keeps at most two states while the level below it is at work.
    levels = (n_steps - 1).bit_length()
    least = record + 2 * levels * state
    if max_bytes < least:
        raise ValueError(
            f"max_bytes: expected at least {least}, which one step of this chain and the states to reach it take, "
            f"got {max_bytes}"
        )
    # The longest segment that fits beside the states of one cut, else halves of halves down to single steps.
    fitting = [k for k in range(1, n_steps) if k * record + -(-n_steps // k) * state <= max_bytes]
    if not fitting:
        return _run_halved(advance, x, 0, n_steps)
    longest = fitting[-1]
    for first in range(0, n_steps, longest):
        x = _checkpointed(_run, advance, x, first, min(first + longest, n_steps))
    return x


def _run(advance: Advance, x: Tensor, first: int, end: int) -> Tensor:
    for step in range(first, end):
        x = advance(x, step)
    return x


def _run_halved(advance: Advance, x: Tensor, first: int, end: int) -> Tensor:
    if end - first == 1:
        return advance(x, first)
    middle = (first + end + 1) // 2
    x = _checkpointed(_run_halved, advance, x, first, middle)
    return _checkpointed(_run_halved, advance, x, middle, end)


def _checkpointed(run: Callable[..., Tensor], advance: Advance, x: Tensor, first: int, end: int) -> Tensor:
    result: Tensor = checkpoint(run, advance, x, first, end, use_reentrant=False)
    return result


def _saved_bytes(advance: Advance, x: Tensor) -> int:
    """Bytes that autograd keeps of one step, parameters and the state itself left out."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = x.detach().requires_grad_(True)
    # The module must draw the same random numbers that it would draw without the measurement.
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = advance(leaf, 0)  # alive while the bytes are counted, or addresses would be used twice
    del kept
    return max(1, sum(sizes.values()))
