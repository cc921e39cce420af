"""The chain's vector-Jacobian product in torch: where no kernel has one, and for the gradients of weights and noise.

Carries out the same plans as the kernels (``gradient_plan.py``), on the whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmalade import reference
from fastmalade.backends.gradient_plan import Kind, Sizes, make_plan
from fastmalade.backends.values import Steps


@dataclass
class _Record:
    state: Tensor
    activations: list[Tensor]


@dataclass
class ChainGradient:
    """One chain and the gradients that are wanted of it.

    Attributes:
        x: (B, C, H, W), the chain's input.
        weights: the ten tensors.
        steps: the N steps.
        run: (state, first step, number of steps) -> state after them, by the backend that ran the chain.
        noise: (step) -> (B, C, H, W), the noise of that step.
        weight_gradients, noise_gradient: whether these are wanted.
    """

    x: Tensor
    weights: Sequence[Tensor]
    steps: Steps
    run: Callable[[Tensor, int, int], Tensor]
    noise: Callable[[int], Tensor]
    weight_gradients: bool
    noise_gradient: bool
    _weight_sums: list[Tensor] = field(default_factory=list)
    _noise_sums: Tensor | None = None

    def evaluate(self, cotangent: Tensor, max_bytes: int | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients with respect to x, noise and weights; empty where not wanted.

        Args:
            cotangent: (B, C, H, W), gradient with respect to the result.
            max_bytes: budget for states and activations, see :func:`gradient_plan.make_plan`.
        """
        n_steps = self.steps.n_steps
        self._weight_sums = [torch.zeros_like(w) for w in self.weights] if self.weight_gradients else []
        shape = (n_steps, *self.x.shape) if self.noise_gradient else (0,)
        self._noise_sums = self.x.new_zeros(shape)
        gradient = cotangent.clone()
        if n_steps == 0 or self.x.numel() == 0:
            return gradient, self._noise_sums, self._weight_sums
        plan = make_plan(n_steps, batch_sizes(self.x, self.weights), max_bytes)
        checkpoints, records, state = {0: self.x}, [], self.x
        for action in plan.actions:
            if action.kind == Kind.LOAD:
                state = checkpoints[action.which]
            elif action.kind == Kind.SAVE:
                checkpoints[action.which] = state
            elif action.kind == Kind.ADVANCE:
                state = self.run(state, action.step, action.which)
            elif action.kind == Kind.RECORD:
                for step in range(action.step, action.step + action.which):
                    records.append(_Record(state, reference.autoencoder_activations(state, self.weights)))
                    if step < n_steps - 1:  # nothing reads the last state
                        state = self.run(state, step, 1)
            else:
                for step in reversed(range(action.step, action.step + action.which)):
                    gradient = self._step_back(gradient, step, records.pop())
        return gradient, self._noise_sums, self._weight_sums

    def _step_back(self, gradient: Tensor, step: int, record: _Record) -> Tensor:
        a, d, low, high = self.steps.at(step)
        if low > -math.inf or high < math.inf:
            z = self.noise(step) if d != 0.0 else None
            free = reference.langevin_step(record.state, record.activations[-1], a, d, z)
            # torch.clamp's own rule: the bounds belong to the inside, NaN to neither side.
            gradient = torch.where((free >= low) & (free <= high), gradient, 0.0)
        if self.noise_gradient:
            assert self._noise_sums is not None
            self._noise_sums[step] = d * gradient
        through, sums = reference.autoencoder_vjp(
            a * gradient, record.activations, self.weights, weight_gradients=self.weight_gradients
        )
        for total, part in zip(self._weight_sums, sums, strict=True):
            total += part
        return (1.0 - a) * gradient + through


def batch_sizes(x: Tensor, weights: Sequence[Tensor]) -> Sizes:
    """Bytes that the states and the activations of this batch take in torch, one step's way back included."""
    pixels, hidden1, hidden2 = x.numel(), weights[0].shape[0], weights[2].shape[0]
    plane = pixels // x.shape[1]
    activations = plane * hidden1 // 4 * 2 + plane * hidden2 // 16 + 2 * pixels
    size = x.element_size()
    # Going back over one step holds two gradients of a layer's output, at most as many numbers as all activations.
    return Sizes(fixed=(activations + 2 * pixels) * size, state=pixels * size, record=(activations + pixels) * size)


def split_like(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Numbers one after the other as tensors of the shapes of ``weights``, each with memory of its own."""
    parts = flat.split([weight.numel() for weight in weights])
    return [part.clone().view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
