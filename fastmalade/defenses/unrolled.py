"""An iteration with the exact gradient of all its steps, in the memory of a few of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, int], State]
"""``step(x, state, t)``: the state after step t. Where gradients are recorded it is differentiable in x and state."""


def iterate(step: Step, n_steps: int, x: Tensor, state: Sequence[Tensor]) -> State:
    """Apply ``step`` n_steps times to ``state``.

    The gradient with respect to ``x`` and the initial state is the exact derivative. The forward pass keeps every
    sqrt(n_steps)-th state; backward runs each stretch between them again and differentiates its steps one by one. So
    the gradient needs memory for about 2 sqrt(n_steps) states and the graph of one step, and runs each step twice.
    Parameters that ``step`` uses count as constants. Differentiable once.

    Args:
        step: deterministic: it is run again in backward.
        n_steps: number of steps, >= 0.
        x: passed to every step, of any shape.
        state: tensors before the first step.

    Returns:
        Tensors after the last step.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(part.requires_grad for part in state)):
        return tuple(_Iterate.apply(step, n_steps, x, *state))
    return _run(step, 0, n_steps, x, tuple(state))


def inner_gradient(losses: Callable[[Sequence[Tensor]], Tensor], at: Sequence[Tensor]) -> tuple[State, Tensor]:
    """Gradient of the sum of ``losses`` at some tensors, and the losses; differentiable where gradients are recorded.

    Args:
        losses: tensors like ``at`` to losses of any shape, where no image's loss depends on another image.
        at: where to take the gradient.
    """
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        points = tuple(p if recording and p.requires_grad else p.detach().requires_grad_(True) for p in at)
        values = losses(points)
        gradients = torch.autograd.grad(values.sum(), points, create_graph=recording)
    return gradients, values if recording else values.detach()


def _run(step: Step, first: int, last: int, x: Tensor, state: State) -> State:
    with torch.no_grad():
        for t in range(first, last):
            state = step(x, state, t)
    return state


class _Iterate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, n_steps: int, x: Tensor, *state: Tensor) -> State:
        stretch = max(1, math.isqrt(n_steps))
        kept: list[Tensor] = []
        for first in range(0, n_steps, stretch):
            kept += state
            state = _run(step, first, min(first + stretch, n_steps), x, state)
        ctx.step, ctx.n_steps, ctx.stretch, ctx.width = step, n_steps, stretch, len(state)
        ctx.save_for_backward(x, *kept)
        # Without steps these are the inputs, which a Function must not return as they are.
        return tuple(part.clone() for part in state) if n_steps == 0 else state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, *kept = ctx.saved_tensors
        width, x_gradient = ctx.width, torch.zeros_like(x)
        for first in reversed(range(0, ctx.n_steps, ctx.stretch)):
            place = first // ctx.stretch * width
            states = [tuple(kept[place : place + width])]
            last = min(first + ctx.stretch, ctx.n_steps)
            for t in range(first, last - 1):
                states.append(_run(ctx.step, t, t + 1, x, states[-1]))
            for t in reversed(range(first, last)):
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_(True)
                    before = tuple(part.detach().requires_grad_(True) for part in states.pop())
                    after = ctx.step(leaf, before, t)
                    # Detached parts, such as flags, have no gradient. A part that the step passes on unchanged is an
                    # input and an output at once, and gets the cotangent as it is.
                    pairs = [(a, g) for a, g in zip(after, gradients, strict=True) if a.requires_grad]
                    outputs, cotangents = zip(*pairs, strict=True)
                    found = torch.autograd.grad(outputs, (leaf, *before), cotangents, allow_unused=True)
                x_gradient = x_gradient if found[0] is None else x_gradient + found[0]
                gradients = tuple(
                    torch.zeros_like(part) if g is None else g for part, g in zip(before, found[1:], strict=True)
                )
        return None, None, x_gradient, *gradients
