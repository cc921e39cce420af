"""The convolution from one channel against the library's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmalade.models import build_classifier
from fastmalade.models.single_channel import SingleChannelConv2d

SHAPES = [
    (5, 3, 1, 0, (9, 7)),
    (1, 5, 1, 2, (6, 11)),
    (3, 8, 2, 3, (13, 10)),
    (4, 2, 3, 0, (12, 8)),
    (2, 1, 1, 0, (1, 1)),
]


def plain(convolution: SingleChannelConv2d) -> nn.Conv2d:
    """The library's own, with the same parameters."""
    same = nn.Conv2d(
        1, convolution.out_channels, convolution.kernel_size,
        stride=convolution.stride, padding=convolution.padding,
    ).to(convolution.weight.dtype)  # fmt: skip
    same.load_state_dict(convolution.state_dict())
    return same


@pytest.mark.parametrize(("channels", "kernel", "stride", "padding", "size"), SHAPES)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_results_and_all_gradients(channels, kernel, stride, padding, size, batch):
    torch.manual_seed(0)
    ours = SingleChannelConv2d(channels, kernel, stride, padding).double()
    theirs = plain(ours)
    x = torch.randn(batch, 1, *size, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(theirs(x))
    found, expected = (
        torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], upstream) for layer in (ours, theirs)
    )
    assert torch.equal(ours(x), theirs(x))
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-12, atol=1e-12)
    # As a channels-last gradient comes from the next layer.
    again = torch.autograd.grad(ours(x), x, upstream.contiguous(memory_format=torch.channels_last))[0]
    torch.testing.assert_close(again, expected[0], rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    torch.manual_seed(0)
    layer = SingleChannelConv2d(3, 3, stride=2, padding=1).double()
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,)).square()

    arguments = (x, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_gradients_of_single_images_by_vmap():
    torch.manual_seed(0)
    layer = SingleChannelConv2d(4, 3).double()
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)

    def loss(image, layer):
        return layer(image[None]).square().sum()

    found, expected = (
        torch.func.vmap(torch.func.grad(lambda image, layer=layer: loss(image, layer)))(images)
        for layer in (layer, plain(layer))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_classifiers_have_the_gradients_of_plain_layers(name):
    torch.manual_seed(0)
    ours = build_classifier(name).eval().double()
    theirs = build_classifier(name).eval().double()
    assert isinstance(theirs.features[0], SingleChannelConv2d)
    theirs.features[0] = plain(theirs.features[0])
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]) for model in (ours, theirs)
    )
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-10, atol=1e-12)


def test_compiled_and_exported_it_is_the_plain_layer():
    torch.manual_seed(0)
    layer = SingleChannelConv2d(4, 3)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    exported = torch.export.export(layer, (x,))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.conv2d.default"}
    assert torch.equal(exported.module()(x), layer(x))
