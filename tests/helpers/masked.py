"""Ways to mask a gradient that more than one test plants."""

from __future__ import annotations

import torch


class ZeroBackward(torch.autograd.Function):
    """The identity, whose backward pass is zero."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)
