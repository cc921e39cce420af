"""The convolution that looks at grey images, with a faster gradient of the images than the library's on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SingleChannelConv2d(nn.Conv2d):
    """``nn.Conv2d`` from one channel, without dilation: the same function and parameters.

    The library's gradient with respect to a single channel vectorises over input channels, of which there is one, and
    takes a fifth of the whole gradient of classifier C. Here it is one product, kernels by positions, and a fold.
    """

    def __init__(self, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(1, out_channels, kernel_size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, C, H', W')."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        found: Tensor = _FoldedGradient.apply(x, self.weight, self.bias, self.stride, self.padding)
        return found


class _FoldedGradient(torch.autograd.Function):
    """Differentiable as often as asked for: its backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient: Tensor = grads[0]
        for_images, for_weight, for_bias = ctx.needs_input_grad[:3]
        images = weights = bias = None
        if for_images:
            channels, rows, columns = gradient.shape[1:]
            positions = gradient.permute(0, 2, 3, 1).reshape(-1, channels)  # a view where channels come last
            taps = weight.reshape(channels, -1).t() @ positions.t()
            patches = taps.reshape(len(taps), len(x), rows * columns).transpose(0, 1)
            images = F.fold(patches, x.shape[2:], weight.shape[2:], stride=ctx.stride, padding=ctx.padding)
        if for_weight or for_bias:
            _, weights, bias = torch.ops.aten.convolution_backward(
                gradient, x, weight, [weight.shape[0]], ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1,
                (False, for_weight, for_bias),
            )  # fmt: skip
        return images, weights, bias, None, None
