"""The gradient of a chain of any module r(x) under a budget of bytes, by ``torch.utils.checkpoint``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Advance = Callable[[Tensor, int], Tensor]


def run_checkpointed(advance: Advance, x: Tensor, n_steps: int, max_bytes: int) -> Tensor:
    """All steps, recorded for autograd within a budget.

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
    # The random numbers of a module of the user's must be those that it draws without the measurement.
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = advance(leaf, 0)  # alive while the bytes are counted, or addresses would be used twice
    del kept
    return max(1, sum(sizes.values()))
