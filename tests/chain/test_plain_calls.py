"""The short way for ordinary calls on a CPU: when it is taken, and that nobody can tell from the results."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastmalade
from fastmalade import ChainConfig, Purifier
from fastmalade.backends import BackendUnavailableError
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource
from fastmalade.chain import direct

CHAIN = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)


class Subclass(torch.Tensor):
    pass


@pytest.fixture
def model(make_autoencoder) -> Purifier:
    return Purifier(make_autoencoder().requires_grad_(False), CHAIN)


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """The calls that took the short way, in order, and whether autograd recorded them."""
    if cpu.unavailable_reason() is not None or cpu.DLPACK_TABLE is None:
        pytest.skip("no extension, or a version of torch without the table")
    seen: list[str] = []
    exact = direct.run

    def observed(*arguments, **options):
        result = exact(*arguments, **options)
        if result is not None:
            seen.append("recorded" if result.requires_grad else "plain")
        return result

    monkeypatch.setattr(direct, "run", observed)
    return seen


def the_long_way(monkeypatch, call):
    """What ``call()`` gives where nothing is ordinary."""
    with monkeypatch.context() as patched:
        patched.setattr(direct, "run", lambda *arguments, **options: None)
        return call()


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (5, 1, 28, 28), (2, 1, 4, 12), (33, 1, 8, 8)])
def test_the_same_bits_as_the_long_way(model, make_images, taken, monkeypatch, shape):
    x, ids = make_images(*shape), list(range(7, 7 + shape[0]))
    calls = {
        "forward": lambda: model(x, seed=2**64 - 3),
        "ids": lambda: model(x, seed=3, sample_ids=ids),
        "tensor": lambda: model.purify(x, seed=5, sample_ids=np.array(ids)),
        "array": lambda: model.purify(x.numpy(), seed=5, n_steps=2),
        "no steps": lambda: model.purify(x, n_steps=0),
        "recording on": lambda: model.purify(x.clone().requires_grad_(), seed=1, backend="cpu"),
    }
    for name, call in calls.items():
        taken.clear()
        result = call()
        assert taken == ["plain"], name
        expected = the_long_way(monkeypatch, call)
        assert type(result) is type(expected)
        assert np.array_equal(result, expected), name
        assert not torch.as_tensor(result).requires_grad
    assert calls["no steps"]().data_ptr() != x.data_ptr()


def test_gradient_of_the_same_bits(model, make_images, taken, monkeypatch):
    x = make_images(5, 1, 8, 8).requires_grad_()
    cotangents = {
        "dense": make_images(5, 1, 8, 8, seed=9),
        "expanded": torch.ones(()).expand(5, 1, 8, 8),
        "negated": torch._neg_view(make_images(5, 1, 8, 8, seed=9)),
        "strided": make_images(5, 1, 8, 16, seed=9)[..., ::2],
    }

    def gradient(cotangent):
        return torch.autograd.grad(model(x, seed=3, sample_ids=range(2, 7)), x, cotangent)[0]

    for name, cotangent in cotangents.items():
        taken.clear()
        result = gradient(cotangent)
        assert taken == ["recorded"], name
        assert torch.equal(result, the_long_way(monkeypatch, lambda given=cotangent: gradient(given))), name


def test_who_needs_a_gradient(model, make_images, taken):
    x = make_images(2, 1, 8, 8)
    assert not model(x).requires_grad
    assert model(x.clone().requires_grad_()).requires_grad
    with torch.no_grad():
        assert not model(x.clone().requires_grad_()).requires_grad
    assert taken == ["plain", "recorded", "plain"]
    taken.clear()
    model.autoencoder.conv2.bias.requires_grad_()
    result = model(x)
    assert taken == ["recorded"]
    result.sum().backward()
    assert model.autoencoder.conv2.bias.grad.abs().sum() > 0
    assert not model.purify(x).requires_grad
    assert taken == ["recorded", "plain"]


def test_gradients_of_large_batches_and_under_budgets(model, make_images, taken, monkeypatch):
    """Their activations are not kept: steps are run again on the way back, with the same bits."""
    x = make_images(8, 1, 8, 8).requires_grad_()
    one_step = CHAIN.replace(n_steps=1).settings
    _, kept = cpu.recorded_chain(x.detach(), model.autoencoder.weights(), one_step, NoiseSource(1))
    steps = 2 * direct.KEPT_BYTES // kept.nbytes
    for chain, max_bytes in [(CHAIN.replace(n_steps=steps), None), (CHAIN, 10**8), (CHAIN.replace(n_steps=0), None)]:
        model.chain, model.max_bytes = chain, max_bytes
        taken.clear()

        def gradient():
            return torch.autograd.grad(model(x, seed=3).square().sum(), x)[0]

        result = gradient()
        assert taken == ["recorded"]
        assert torch.equal(result, the_long_way(monkeypatch, gradient))


def refused_inputs(x):
    return {
        "float64": x.double(),
        "subclass": x.as_subclass(Subclass),
        "strided": torch.cat([x, x], 3)[..., ::2],
        "negated": torch._neg_view(-x),
        "empty": x[:0],
        "list": x.tolist(),
        "one axis less": x[0],
        "none": torch.tensor(0.5),
        "too narrow": x[..., :6],
        "channels": x.expand(2, 3, 8, 8),
    }


@pytest.mark.parametrize("kind", refused_inputs(torch.zeros(2, 1, 8, 8)))
def test_other_inputs_go_the_long_way(model, make_images, taken, monkeypatch, kind):
    x = refused_inputs(make_images(2, 1, 8, 8))[kind]

    def outcome():
        try:
            return model(x, seed=3)
        except (TypeError, ValueError) as error:
            return repr(error)

    found = outcome()
    assert taken == []
    expected = the_long_way(monkeypatch, outcome)
    assert found == expected if isinstance(found, str) else torch.equal(found, expected)


def test_other_weights_go_the_long_way(model, make_images, taken, monkeypatch):
    x = make_images(2, 1, 8, 8)

    def negated(layers):
        layers.conv1.weight = nn.Parameter(torch._neg_view(-layers.conv1.weight), requires_grad=False)

    changes = {
        "pruned": lambda layers: prune.random_unstructured(layers.conv2, "weight", amount=0.5),
        "normed": lambda layers: torch.nn.utils.parametrizations.weight_norm(layers.deconv1),
        "strided": lambda layers: layers.to(memory_format=torch.channels_last),
        "negated": negated,
        "another class": lambda layers: setattr(layers, "conv1", nn.Sequential(layers.conv1)),
    }
    for name, change in changes.items():
        other = copy.deepcopy(model)
        with torch.no_grad():
            change(other.autoencoder)
        taken.clear()
        with torch.no_grad():
            result = other(x, seed=3)
        assert taken == [], name
        with torch.no_grad():
            expected = the_long_way(monkeypatch, lambda given=other: given(x, seed=3))
        assert torch.equal(result, expected), name
    replaced = copy.deepcopy(model)
    replaced.autoencoder.conv1.weight = nn.Parameter(torch.zeros(10, 1, 5, 5), requires_grad=False)
    replaced.autoencoder.conv2.bias.data = torch.ones(25)
    taken.clear()
    result = replaced(x, seed=3)
    assert taken == ["plain"]
    assert torch.equal(result, the_long_way(monkeypatch, lambda: replaced(x, seed=3)))
    assert not torch.equal(result, model(x, seed=3))


def test_the_environment_is_read_at_each_call(model, make_images, taken, monkeypatch):
    x = make_images(2, 1, 8, 8)
    expected = model(x, seed=3)
    monkeypatch.setenv("FASTMALADE_BACKEND", "torch")
    torch.testing.assert_close(model(x, seed=3), expected, rtol=0, atol=1e-5)
    assert taken == ["plain"]
    monkeypatch.setenv("FASTMALADE_BACKEND", "cpu")
    assert torch.equal(model(x, seed=3), expected)
    for isa in cpu.isas_supported():
        monkeypatch.setenv("FASTMALADE_CPU_ISA", isa)
        torch.testing.assert_close(model(x, seed=3), expected, rtol=0, atol=1e-5)
    assert taken == ["plain"] * (2 + len(cpu.isas_supported()))
    monkeypatch.setenv("FASTMALADE_CPU_ISA", "sse9")
    with pytest.raises(BackendUnavailableError, match="got 'sse9'"):
        model(x)
    monkeypatch.delenv("FASTMALADE_CPU_ISA")
    monkeypatch.setenv("FASTMALADE_BACKEND", "unknown")
    with pytest.raises(ValueError, match="got 'unknown'"):
        model(x)
    taken.clear()
    assert torch.equal(model.purify(x, seed=3, backend="cpu"), expected)
    assert taken == ["plain"]


@pytest.mark.parametrize("array", [False, True])
def test_errors_are_those_of_the_long_way(model, make_images, array):
    x = make_images(2, 1, 8, 8)

    def purify(images, **options):
        return model.purify(images.numpy() if array else images, **options)

    with pytest.raises(ValueError, match="got NaN"):
        purify(x.where(x > 0.5, torch.nan))
    with pytest.raises(ValueError, match=r"got values from .* to 2"):
        purify(x * 2 / x.max())
    with pytest.raises(ValueError, match=r"expected shape .*, got \(2, 1, 6, 8\)"):
        purify(x[:, :, :6])
    with pytest.raises(TypeError, match="seed: expected an int"):
        purify(x, seed=1.5)
    with pytest.raises(ValueError, match=r"sample_ids: expected shape \(2,\)"):
        purify(x, sample_ids=[1])
    with pytest.raises(FloatingPointError, match="diverged"):
        purify(x, step_size=1e38, n_steps=9, clamp="none")
    with pytest.raises(BackendUnavailableError, match="cuda"):
        purify(x, backend="cuda")


def test_weights_written_to_before_the_gradient_are_noticed(model, make_images, taken):
    x = make_images(2, 1, 8, 8).requires_grad_()
    result = model(x, seed=1)
    with torch.no_grad():
        model.autoencoder.conv1.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        torch.autograd.grad(result.sum(), x)
    assert taken == ["recorded"]


def test_an_input_written_to_before_the_gradient_is_noticed(model, make_images, taken):
    x = make_images(2, 1, 8, 8).requires_grad_()
    result = model(x)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        torch.autograd.grad(result.sum(), x)
    assert taken == ["recorded"]


def test_kept_graphs_and_double_backward(model, make_images, taken):
    x = make_images(2, 1, 8, 8).requires_grad_()
    result = model(x)
    first = torch.autograd.grad(result.square().sum(), x, retain_graph=True)[0]
    (again,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    assert torch.equal(again, first)
    with pytest.raises(RuntimeError, match="differentiable once"):
        again.square().sum().backward()
    assert taken == ["recorded"]


def test_nothing_of_a_call_is_left(model, make_images, taken):
    """Without a cycle: freed with the result, not at the next collection of garbage."""
    x = make_images(1, 1, 8, 8).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        result = model(x)
        node = weakref.ref(result.grad_fn)
        del result
        assert node() is None
    finally:
        gc.enable()
    assert taken == ["recorded"]


def test_weights_replaced_while_a_graph_waits(model, make_images, taken):
    """The gradient is of the weights that the chain ran with, however the module changes."""
    x = make_images(2, 1, 8, 8).requires_grad_()
    expected = torch.autograd.grad(model(x, seed=3).sum(), x)[0]
    result = model(x, seed=3)
    model.autoencoder.conv1 = nn.Conv2d(1, 10, 5)
    model.autoencoder.conv2.weight.data = torch.zeros(25, 10, 5, 5)
    gc.collect()
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], expected)
    assert taken == ["recorded"] * 2


def test_the_shipped_purifier_by_name(make_images, taken):
    x = make_images(3, 1, 28, 28)
    result = fastmalade.purify(x, seed=1)
    assert torch.equal(result, Purifier.from_pretrained("malade-mnist").purify(x, seed=1))
    assert np.array_equal(fastmalade.purify(x.numpy(), seed=1), result)
    assert taken == ["plain"] * 3
