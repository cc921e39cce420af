"""The chain and its gradient on the Triton kernels: the order of the launches, and the memory they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.triton.stages import DeviceNoise, Framed, Model, ceil_div, strides
from fastmalade.backends.values import Steps
from fastmalade.kernels.triton import tail, tail_backward


class Activations:
    """What conv1, conv2 and deconv1 give for a batch, in buffers that all steps share."""

    def __init__(self, model: Model, batch: int) -> None:
        self.first = model.framed("conv2", batch)
        self.second = model.framed("deconv1", batch)
        self.third = Framed((batch, model.hidden1, model.height // 2, model.width // 2), 0, model.device)

    def compute(self, model: Model, state: Framed) -> None:
        """Three launches."""
        model.convolve("conv1", state.buffer, self.first.inside, self.first.inside)
        model.convolve("conv2", self.first.buffer, self.second.inside, self.second.inside)
        model.convolve("deconv1", self.second.buffer, self.third.inside, self.third.inside)


def run(x: Tensor, model: Model, steps: Steps, noise: DeviceNoise, out: Tensor) -> None:
    """All N >= 1 steps from ``x`` (B, C, H, W) into ``out`` of the same shape, any strides; four launches each."""
    state = _framed_state(model, x)
    activations = Activations(model, x.shape[0])
    last = steps.n_steps - 1
    for step in range(last + 1):
        _advance(model, activations, state, out if step == last else state.inside, steps, noise, step)


def states(x: Tensor, model: Model, steps: Steps, noise: DeviceNoise) -> list[Framed]:
    """The N + 1 states of the chain, framed, the first of them ``x``."""
    found = [_framed_state(model, x)]
    activations = Activations(model, x.shape[0])
    for step in range(steps.n_steps):
        following = model.framed("conv1", x.shape[0])
        _advance(model, activations, found[-1], following.inside, steps, noise, step)
        found.append(following)
    return found


def vector_jacobian(cotangent: Tensor, x: Tensor, model: Model, steps: Steps, noise: DeviceNoise, out: Tensor) -> None:
    """Gradient with respect to ``x``, given that with respect to the result; nine launches per step.

    All tensors (B, C, H, W), ``cotangent`` and ``out`` contiguous. The states are kept, the activations of a step are
    computed again from them, the noise is drawn again from its counters.
    """
    batch = x.shape[0]
    kept = states(x, model, steps, noise)
    activations = Activations(model, batch)
    out.copy_(cotangent)
    before_tanh = torch.empty_like(out)
    even, third = model.framed("deconv2_backward", batch), model.framed("deconv1_backward", batch)
    second, first = model.framed("conv2_backward", batch), model.framed("conv1_backward", batch)
    for step in reversed(range(steps.n_steps)):
        kept.pop()
        state = kept[-1]
        activations.compute(model, state)
        arguments = _tail_arguments(model, activations, state, steps, noise, step)
        _tail_cotangents(model, activations, arguments, out, before_tanh, even)
        model.convolve("deconv2_backward", even.buffer, third.inside, activations.third.inside)
        model.convolve("deconv1_backward", third.buffer, second.inside, activations.second.inside)
        model.convolve("conv2_backward", second.buffer, first.inside, activations.first.inside)
        model.convolve("conv1_backward", first.buffer, out, out)


def bytes_per_image(shape: Sequence[int], hidden: Sequence[int], kept_states: int, *, backward: bool) -> int:
    """Upper bound of an image's working memory on the device, with so many states kept besides the current one."""
    channels, height, width = shape
    image = (height + 4) * (width + 4) * channels
    # Buffers on the half and the quarter grid, each counted with the widest frame.
    half = (height // 2 + 8) * (width // 2 + 8) * hidden[0]
    quarter = (height // 4 + 4) * (width // 4 + 4) * hidden[1]
    forward = (1 + kept_states) * image + 2 * half + quarter
    return 4 * (forward + (2 * image + 2 * half + quarter if backward else 0))


def _framed_state(model: Model, x: Tensor) -> Framed:
    state = model.framed("conv1", x.shape[0])
    state.inside.copy_(x)
    return state


def _tail_arguments(
    model: Model, activations: Activations, state: Framed, steps: Steps, noise: DeviceNoise, step: int
) -> dict[str, Any]:
    """What the tail and its vector-Jacobian product both read (kernels/triton/tail.py)."""
    a, d, low, high = steps.at(step)
    kind, given = noise.of_step(step, d, model.start)
    return {
        **_last_layers(model, activations),
        "start": model.start,
        "state": state.inside,
        **strides("state", state.inside),
        "noise": given,
        "seed": noise.seed,
        "sample_ids": noise.sample_ids,
        "patches": state.inside.shape[0] * (model.height // 2) * (model.width // 4),
        "step": step,
        "step_size": a,
        "noise_scale": d,
        "low": low,
        "high": high,
        "NOISE": kind,
    }


def _last_layers(model: Model, activations: Activations) -> dict[str, Any]:
    """deconv2 and conv3, and what they are applied to."""
    return {
        "activation": activations.third.buffer,
        "weights2": model.weights[6],
        "bias2": model.weights[7],
        "weights3": model.weights[8],
        "height": model.height,
        "width": model.width,
        "CHANNELS": model.channels,
        "HIDDEN": model.hidden1,
    }


def _advance(
    model: Model, activations: Activations, state: Framed, out: Tensor, steps: Steps, noise: DeviceNoise, step: int
) -> None:
    """One step from ``state`` into ``out``, which may be the inside of the state."""
    activations.compute(model, state)
    arguments = _tail_arguments(model, activations, state, steps, noise, step)
    tile = model.tiles["tail"]
    grid = (ceil_div(arguments["patches"], tile.block_m), model.channels)
    tail.tail_kernel[grid](**arguments, out=out, **strides("out", out), BLOCK=tile.block_m, **tile.options)


def _tail_cotangents(
    model: Model, activations: Activations, tail_arguments: dict[str, Any], gradient: Tensor, before_tanh: Tensor,
    even: Framed,
) -> None:  # fmt: skip
    """Two launches from ``gradient``, the cotangent of the new state, to ``even``, that of deconv2 before its tanh.

    ``gradient`` becomes the part of the state's cotangent that does not come through r; ``before_tanh`` is memory for
    the cotangent of conv3 in between.
    """
    tile = model.tiles["tail_cotangent"]
    grid = (ceil_div(tail_arguments["patches"], tile.block_m), model.channels)
    clamped = tail_arguments["low"] > -math.inf or tail_arguments["high"] < math.inf
    tail_backward.tail_cotangent_kernel[grid](
        **tail_arguments, gradient=gradient, cotangent=before_tanh, CLAMPED=clamped, BLOCK=tile.block_m, **tile.options
    )
    tile = model.tiles["even_cotangent"]
    positions = gradient.shape[0] * (model.height // 2) * (model.width // 2)
    tail_backward.even_cotangent_kernel[(ceil_div(positions, tile.block_m), model.channels)](
        **_last_layers(model, activations), cotangent=before_tanh, out=even.buffer, positions=positions,
        BLOCK=tile.block_m, **tile.options,
    )  # fmt: skip
