"""The networks against the papers' tables, and their errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmalade import Autoencoder
from fastmalade.models import CLASSIFIERS, build_classifier, in_channels_last
from fastmalade.models.registry import load_classifier


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 4, 8)])
def test_autoencoder_is_table_8(shape):
    model = Autoencoder(shape[0])
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:]))) for layer in model.children()
    ]
    out = model(torch.rand(3, *shape))
    for hook in hooks:
        hook.remove()
    c, h, w = shape
    assert sizes == [(10, h // 2, w // 2), (25, h // 4, w // 4), (10, h // 2, w // 2), (c, h, w), (c, h, w)]
    assert out.shape == (3, *shape)
    assert out.abs().max() < 1
    kernels = [tuple(weight.shape[2:]) for weight in model.weights()[::2]]
    assert kernels == [(5, 5), (5, 5), (9, 9), (1, 1), (5, 5)]


def test_autoencoder_of_mnist_has_the_papers_parameter_count():
    # 10*1*25+10, 25*10*25+25, 25*10*81+10, 10*1+1, 25+1
    assert sum(p.numel() for p in Autoencoder().parameters()) == 260 + 6275 + 20260 + 11 + 26


def test_initialisation_is_repeatable_and_not_stuck():
    first, second = (Autoencoder(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.weights(), second.weights(), strict=True))
    x = torch.rand(8, 1, 28, 28)
    with torch.no_grad():
        spread = first(x).std(0).mean()
    assert spread > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 28, 27), (1, 2, 28, 28), (1, 28, 28), (1, 1, 0, 28), (1, 1, 6, 8)])
def test_autoencoder_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 1, H, W\).*got"):
        Autoencoder()(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [(0,), (1, (10,)), (1, (10, 0)), (1, (10, 2.5)), (True,)])
def test_autoencoder_refuses_other_channel_counts(arguments):
    with pytest.raises(ValueError, match="expected"):
        Autoencoder(*arguments)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("A", [(64, 5, 1), (64, 5, 2), 128, 10]),
        ("B", [(64, 8, 2), (128, 6, 2), (128, 5, 1), 10]),
        ("C", [(128, 3, 1), (64, 5, 2), 128, 10]),
        ("D", [200, 200, 10]),
    ],
)
def test_classifiers_are_table_7(name, layers):
    model = build_classifier(name).eval()
    found = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            found.append((module.out_channels, module.kernel_size[0], module.stride[0]))
        elif isinstance(module, nn.Linear):
            found.append(module.out_features)
    assert found == layers
    x = torch.rand(3, 1, 28, 28)
    assert model(x).shape == (3, 10)
    assert torch.equal(model(x), model(x))
    with pytest.raises(ValueError, match=r"expected images of shape \('B', 1, 28, 28\)"):
        model(x[:, :, 1:])


def test_classifiers_take_other_shapes_and_class_counts():
    for name in CLASSIFIERS:
        model = build_classifier(name, in_channels=3, image_size=(32, 36), num_classes=4)
        assert model(torch.rand(2, 3, 32, 36)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"expected one of .* got .E."):
        build_classifier("E")
    with pytest.raises(ValueError, match=r"image_size: expected room for the convolutions of A, got \(4, 4\)"):
        build_classifier("A", image_size=(4, 4))


def test_channels_last_computes_the_same():
    model = build_classifier("C").eval()
    x = torch.rand(5, 1, 28, 28)
    with torch.no_grad():
        exact = model.double()(x.double())
        model.float()
        before = (model(x) - exact).abs().max()
        after = (in_channels_last(model)(x) - exact).abs().max()
    assert after <= 2 * before + 1e-6


def test_channels_last_reaches_layers_of_one_channel(digits):
    """Weights of one input channel are contiguous in both formats; their strides decide the format of the output."""
    images = digits[0][:4]
    plain, fast = load_classifier("mnist-c"), in_channels_last(load_classifier("mnist-c"))
    assert fast.features[0](images).is_contiguous(memory_format=torch.channels_last)
    assert not plain.features[0](images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-4, atol=1e-4)
    for name, weight in plain.state_dict().items():
        assert torch.equal(fast.state_dict()[name], weight)
    double = in_channels_last(load_classifier("mnist-c").double())
    assert all(parameter.dtype is torch.float64 for parameter in double.parameters())
