"""Counting the arithmetic of a network, by running it on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def network_flops(network: nn.Module, input_shape: Sequence[int]) -> tuple[int, int]:
    """Floating point operations of one forward pass, and of a backward pass to the input only.

    Torch's own counter counts convolutions and matrix products, a multiply-add as two; taps on padding are included.

    Args:
        network: any module that takes one tensor; it is neither changed nor run on data.
        input_shape: shape of the input, including the batch.

    Returns:
        (operations of the forward pass, of the backward pass).
    """
    phantom = copy.deepcopy(network).to("meta").requires_grad_(False)
    x = torch.empty(tuple(input_shape), device="meta", requires_grad=True)
    with torch.enable_grad():
        with FlopCounterMode(display=False) as counter:
            output = phantom(x)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(output.sum(), x)
    return int(forward), int(counter.get_total_flops())
