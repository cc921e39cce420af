"""When a chain may be called below the dispatcher, and that nobody can tell from the results."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastmalade
from fastmalade.backends import extensions
from fastmalade.backends.cpu import extension as cpu_extension
from fastmalade.chain import observers

A, D = [0.5, 0.4, 0.3], [0.2, 0.0, 0.1]


class Subclass(torch.Tensor):
    pass


class Recorder(TorchDispatchMode):
    """Names of the operators that pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_plain_tensors_are_unobserved():
    x, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert observers.is_unobserved(x, None, torch.nn.Parameter(x, requires_grad=False), recorded=True)
    assert not observers.is_unobserved(x, leaf, recorded=True)
    assert observers.is_unobserved(x, leaf, recorded=False)
    assert not observers.is_unobserved(x.as_subclass(Subclass), recorded=False)


def test_observers_are_noticed():
    x = torch.zeros(2)
    seen: list[bool] = []
    with Recorder():
        seen.append(observers.is_unobserved(x, recorded=False))
    with Passing():
        seen.append(observers.is_unobserved(x, recorded=False))
    with forward_ad.dual_level():
        seen.append(observers.is_unobserved(x, recorded=False))
    with torch.profiler.profile():
        seen.append(observers.is_unobserved(x, recorded=False))
    torch.func.vmap(lambda v: seen.append(observers.is_unobserved(x, recorded=False)) or v)(x)
    torch.jit.trace(lambda v: seen.append(observers.is_unobserved(x, recorded=False)) or v + 1, (x,), check_trace=False)
    assert seen == [False] * 6
    assert observers.is_unobserved(x, recorded=True)


def test_a_dispatch_mode_still_sees_the_operator(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8)
    expected = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
    with Recorder() as recorder:
        result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
    assert torch.equal(result, expected)
    assert any("langevin_chain" in name for name in recorder.names)


def test_the_same_bits_on_both_ways(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(5, 1, 8, 8)
    options = {"seed": 2**64 - 3, "sample_ids": [7, 2**63 + 1, 0, 7, 3], "clamp": (0.1, 0.8), "backend": backend}
    recorded = fastmalade.langevin_chain(x, model, A, D, **options)
    assert recorded.requires_grad
    with torch.no_grad():
        direct = fastmalade.langevin_chain(x, model, A, D, **options)
    assert not direct.requires_grad
    assert torch.equal(direct, recorded)
    assert direct.data_ptr() != x.data_ptr()


def test_zero_steps_and_empty_batches(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(3, 1, 8, 8)
    result = fastmalade.langevin_chain(x, model, [], [], backend=backend)
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    assert fastmalade.langevin_chain(x[:0], model, A, D, backend=backend).shape == (0, 1, 8, 8)


def test_weights_that_others_have_put_in_place(make_autoencoder, make_images, backend):
    """The weights are those that a forward pass would use, wherever torch keeps them."""
    x = make_images(2, 1, 8, 8)

    def result(model):
        with torch.no_grad():
            return fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)

    plain = make_autoencoder()
    expected = result(plain)
    zeroed = copy.deepcopy(plain)
    prune.random_unstructured(zeroed.conv2, "weight", amount=0.5)
    prune.remove(zeroed.conv2, "weight")
    assert not torch.equal(result(zeroed), expected)
    replaced = copy.deepcopy(plain)
    replaced.conv2.weight = torch.nn.Parameter(zeroed.conv2.weight.detach().clone())
    assert torch.equal(result(replaced), result(zeroed))
    swapped = dict(zeroed.named_parameters())
    by_call = torch.func.functional_call(plain, swapped, (x,))
    assert torch.equal(by_call, zeroed(x))
    changed = copy.deepcopy(plain)
    result(changed)
    changed.conv2.weight.data = zeroed.conv2.weight.data.clone().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result(changed), result(zeroed), rtol=0, atol=0 if backend == "cpu" else 1e-6)


def test_purify_does_not_leave_autograd_switched(purifier, make_images):
    x = make_images(2, 1, 8, 8)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            purifier.purify(x)
            with pytest.raises(ValueError, match="expected finite values"):
                purifier.purify(x * float("nan"))
            assert torch.is_grad_enabled() is enabled


def test_settings_of_a_chain_are_computed_once_and_right():
    config = fastmalade.ChainConfig(n_steps=4, decay=0.5, offset=2.0)
    a, d, lows, highs = config.settings
    assert (list(a), list(d)) == config.schedule()
    assert (list(lows), list(highs)) == config.clamp_bounds()
    assert config.settings is config.settings
    assert copy.deepcopy(config) == config == fastmalade.ChainConfig.from_dict(config.to_dict())
    assert "settings" not in config.__getstate__()
    assert config.replace(n_steps=2).settings[0] == a[:2]


def test_infinite_results_are_reported_on_every_backend(make_images, backend):
    module = fastmalade.Purifier(lambda v: v * float("inf"), fastmalade.ChainConfig(n_steps=1, clamp="none"))
    with pytest.raises(FloatingPointError, match="diverged"):
        module.purify(make_images(1, 1, 4, 4) + 0.0, backend=backend)


def test_the_extension_may_be_away(make_autoencoder, make_images, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cpu_extension, "_extension", None)
    monkeypatch.setattr(extensions.importlib, "import_module", missing)
    model = fastmalade.Purifier(make_autoencoder().requires_grad_(False), fastmalade.ChainConfig(n_steps=1))
    assert model.purify(make_images(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="got NaN"):
        model.purify(make_images(1, 1, 8, 8) * float("nan"))


def test_weights_written_to_before_the_gradient_are_noticed(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8).requires_grad_()
    result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
    with torch.no_grad():
        model.conv1.bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        torch.autograd.grad(result.sum(), x)


def test_an_input_written_to_before_the_gradient_is_noticed(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8).requires_grad_()
    result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        torch.autograd.grad(result.sum(), x)


def test_a_graph_that_is_kept_gives_the_gradient_twice(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8).requires_grad_()
    result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
    first = torch.autograd.grad(result.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], first)


@pytest.mark.parametrize("max_bytes", [None, 10**8])
def test_double_backward_raises_here_too(make_autoencoder, make_images, backend, max_bytes):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8).requires_grad_()
    result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend, max_bytes=max_bytes)
    (gradient,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


def test_what_a_gradient_keeps_goes_with_its_graph(make_autoencoder, make_images, backend):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8).requires_grad_()
    gc.collect()
    gc.disable()
    try:
        result = fastmalade.langevin_chain(x, model, A, D, seed=1, backend=backend)
        node = weakref.ref(result.grad_fn)
        torch.autograd.grad(result.sum(), x)
        del result
        assert node() is None  # by counting references alone: activations must not wait for the collector
    finally:
        gc.enable()
