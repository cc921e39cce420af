"""An Autoencoder that somebody has changed: every result is that of its own forward pass, whatever the change."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastmalade
from fastmalade import Autoencoder, ChainConfig, Purifier
from fastmalade.backends.cpu import calls as cpu
from fastmalade.chain.reconstruction import autoencoder_vjp, reconstruct
from fastmalade.models.registry import save_autoencoder
from fastmalade.models.table8 import TABLE_8, is_native_autoencoder, native_weights

CHAIN = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)


class Halved(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


class Adapter(nn.Module):
    """A wrapped layer with a small correction, which offers the layer's tensors as its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return self.layer(x) + 0.1


class Convolution(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).clamp(-0.3, 0.3)


class Other(Autoencoder):
    def forward(self, x):
        return 0.5 * super().forward(x)


def other_layer(model):
    layer = Convolution(1, 10, 5, stride=2, padding=2)
    layer.load_state_dict(model.conv1.state_dict())
    model.conv1 = layer


def own_forward(model):
    original = model.conv2.forward
    model.conv2.forward = lambda x: original(x) * 0.5  # as libraries that move layers between devices do


def other_model_forward(model):
    model.forward = types.MethodType(lambda self, x: 0.25 + 0.5 * x, model)


def other_stride(model):
    model.conv1.stride, model.deconv2.stride, model.deconv2.output_padding = (1, 1), (1, 1), (0, 0)


CHANGES = {
    "a hook": lambda m: m.conv1.register_forward_hook(lambda _layer, _inputs, y: y * 0.5),
    "a pre-hook": lambda m: m.deconv1.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] * 0.5,)),
    "a hook with keywords": lambda m: m.conv3.register_forward_hook(lambda _l, _i, _k, y: y * 0.5, with_kwargs=True),
    "a hook of the whole": lambda m: m.register_forward_hook(lambda _model, _inputs, y: y * 0.5),
    "a pre-hook of the whole": lambda m: m.register_forward_pre_hook(lambda _model, inputs: (inputs[0] * 0.5,)),
    "pruning": lambda m: prune.random_unstructured(m.conv2, "weight", amount=0.5),
    "structured pruning": lambda m: prune.ln_structured(m.deconv1, "weight", amount=0.5, n=2, dim=1),
    "pruning of a bias": lambda m: prune.random_unstructured(m.conv1, "bias", amount=0.5),
    "weight norm": lambda m: parametrizations.weight_norm(m.conv2).parametrizations.weight.original0.data.mul_(2),
    "old weight norm": lambda m: nn.utils.weight_norm(m.conv2).weight_g.data.mul_(2),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.deconv1),
    "a parametrization": lambda m: parametrize.register_parametrization(m.conv3, "weight", Halved()),
    "an adapter": lambda m: setattr(m, "conv2", Adapter(m.conv2)),
    "a sequence": lambda m: setattr(m, "conv3", nn.Sequential(m.conv3, nn.Tanh())),
    "a class of the user": other_layer,
    "a forward of the layer": own_forward,
    "a forward of the model": other_model_forward,
    "padding mode": lambda m: (
        setattr(m.conv2, "padding_mode", "circular")
        or setattr(m.conv2, "_reversed_padding_repeated_twice", [2, 2, 2, 2])
    ),
    "stride": other_stride,
    "dilation": lambda m: setattr(m.conv3, "dilation", (2, 2)) or setattr(m.conv3, "padding", (4, 4)),
    "no bias": lambda m: m.conv2.register_parameter("bias", None),
}
KEPT = {
    "nothing": lambda m: None,
    "a copy": lambda m: copy.deepcopy(m),
    "other tensors": lambda m: setattr(m.conv2, "weight", nn.Parameter(m.conv2.weight.detach() * 0.5)),
    "pruning made permanent": lambda m: prune.remove(prune.random_unstructured(m.conv2, "weight", 0.5), "weight"),
    "training mode": lambda m: m.train(),
    "frozen": lambda m: m.requires_grad_(False),
    "a removed hook": lambda m: m.conv1.register_forward_hook(lambda *a: None).remove(),
    "a hook of the state": lambda m: m.register_state_dict_post_hook(lambda *a: None),
    "buffers": lambda m: m.register_buffer("mean", torch.zeros(1)),
}


def changed(model: Autoencoder, name: str) -> Autoencoder:
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    other.requires_grad_(False)
    CHANGES[name](other)
    return other.eval()


def reader_finds(model: Autoencoder, x: torch.Tensor) -> bool:
    return cpu.model_of(x, model) is not None


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_network_runs_as_it_is(make_autoencoder, make_images, backend, name):
    model, x = changed(make_autoencoder(), name), make_images(3, 1, 12, 8)
    assert not is_native_autoencoder(model)
    if cpu.unavailable_reason() is None:
        assert not reader_finds(model, x)
    plain = Purifier(make_autoencoder().requires_grad_(False), CHAIN, backend=backend)
    purifier = Purifier(model, CHAIN, backend=backend)
    anything = Purifier(lambda state: model(state), CHAIN, backend=backend)

    def gradient(of):
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(of(leaf, seed=5).square().sum(), leaf)[0]

    expected = anything.purify(x, seed=5)
    assert torch.equal(purifier.purify(x, seed=5), expected)
    assert torch.equal(purifier(x, seed=5).detach(), expected)
    torch.testing.assert_close(gradient(purifier), gradient(anything), rtol=0, atol=1e-6)
    assert (expected - plain.purify(x, seed=5)).abs().max() > 1e-3  # the change makes a difference
    assert torch.equal(reconstruct(model, x, backend=backend), model(x).detach())
    leaf = x.clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad(model(leaf), leaf, x)
    torch.testing.assert_close(autoencoder_vjp(model, x, x, backend=backend), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KEPT)
def test_what_changes_nothing_stays_native(make_autoencoder, make_images, name):
    model = make_autoencoder()
    model = KEPT[name](model) if name == "a copy" else (KEPT[name](model), model)[1]
    assert is_native_autoencoder(model)
    assert [w is v for w, v in zip(native_weights(model), model.weights(), strict=True)] == [True] * 10
    if cpu.unavailable_reason() is None:
        assert reader_finds(model, make_images(2, 1, 8, 8))


def test_hooks_of_the_whole_process(make_autoencoder, make_images):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8)
    plain = fastmalade.langevin_chain(x, model, [0.5], [0.0])
    for register in (
        lambda: nn.modules.module.register_module_forward_hook(lambda _layer, _inputs, y: y * 0.5),
        lambda: nn.modules.module.register_module_forward_pre_hook(lambda _layer, inputs: (inputs[0] * 0.5,)),
        lambda: nn.modules.module.register_module_full_backward_hook(lambda _layer, _inputs, _outputs: None),
    ):
        handle = register()
        try:
            assert not is_native_autoencoder(model)
            found = fastmalade.langevin_chain(x, model, [0.5], [0.0])
            torch.testing.assert_close(found, x + 0.5 * (model(x) - x), rtol=0, atol=1e-6)
        finally:
            handle.remove()
    assert torch.equal(fastmalade.langevin_chain(x, model, [0.5], [0.0]), plain)


def test_classes_patched_for_the_whole_process(make_autoencoder, make_images, monkeypatch):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8)
    original = nn.Conv2d.forward
    for owner, forward in (
        (nn.Conv2d, lambda self, y: 0.5 * original(self, y)),
        (Autoencoder, lambda self, y: 0.5 * y),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, "forward", forward)
            found = fastmalade.langevin_chain(x, model, [0.5], [0.0])
            torch.testing.assert_close(found, x + 0.5 * (model(x) - x), rtol=0, atol=1e-6)


def test_a_subclass_is_native_until_it_computes_something_else(make_images):
    class Named(Autoencoder):
        pass

    x, generator = make_images(2, 1, 8, 8), torch.Generator()
    for kind, native in ((Named, True), (Other, False)):
        model = kind(generator=generator.manual_seed(3)).requires_grad_(False)
        assert is_native_autoencoder(model) == native
        found = fastmalade.langevin_chain(x, model, [0.5], [0.0])
        torch.testing.assert_close(found, x + 0.5 * (model(x) - x), rtol=0, atol=1e-6)


def test_layers_in_another_dtype(make_autoencoder, make_images):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8)
    model.conv2.double()
    model.conv2.register_forward_pre_hook(lambda _layer, inputs: (inputs[0].double(),))
    model.conv2.register_forward_hook(lambda _layer, _inputs, y: y.float())
    found = fastmalade.langevin_chain(x, model, [0.5], [0.0])
    torch.testing.assert_close(found, x + 0.5 * (model(x) - x), rtol=0, atol=1e-6)
    bare = make_autoencoder()
    bare.conv2.double()
    assert not is_native_autoencoder(bare)
    with pytest.raises(RuntimeError):  # torch's own: the layers do not fit together
        fastmalade.langevin_chain(x, bare, [0.5], [0.0])


def test_a_changed_network_is_not_saved_as_if_it_were_not(make_autoencoder, tmp_path):
    for name in ("a hook", "pruning", "padding mode", "an adapter"):
        model = changed(make_autoencoder(), name)
        with pytest.raises(TypeError, match="exactly Table 8"):
            save_autoencoder(model, tmp_path / "model.safetensors")
        with pytest.raises(TypeError, match="exactly Table 8"):
            Purifier(model, CHAIN).save_pretrained(tmp_path / "purifier.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_definition_fits_what_the_constructor_makes():
    for shape in ((1, (10, 25)), (3, (4, 7))):
        model = Autoencoder(*shape)
        assert [type(getattr(model, name)) for name in TABLE_8.layers] == [r.kind for r in TABLE_8.layers.values()]
        assert is_native_autoencoder(model)
