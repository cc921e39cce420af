"""Purifier as a module: moving, copying, value ranges, trajectories, and the randomness of purify."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import reference64
import torch
from torch import nn

import fastmalade
from fastmalade import ChainConfig, Purifier, backends


def test_forward_is_the_chain(purifier, make_images, backend):
    x = make_images(7, 1, 8, 12)
    a, d = purifier.chain.schedule()
    expected = fastmalade.langevin_chain(
        x, purifier.autoencoder, a, d, seed=3, clamp=(0.0, 1.0), clamp_steps="final", backend=backend
    )
    purifier.backend = backend
    assert torch.equal(purifier(x, seed=3), expected)
    assert torch.equal(purifier.purify(x, seed=3), expected)


def test_gradient_is_that_of_the_native_forward(purifier, make_images, backend):
    """The noise of the backward pass is the noise of the forward pass, for a seed and for a fresh one."""
    exact = copy.deepcopy(purifier).to(torch.float64)
    purifier.backend = backend

    def gradient(module, **options):
        x = make_images(3, 1, 8, 8).to(next(module.parameters()).dtype).requires_grad_()
        return torch.autograd.grad(module(x, **options).square().sum(), x)[0]

    plain = copy.deepcopy(purifier)
    plain.backend = "torch"
    reference64.assert_within_rule(gradient(purifier, seed=2), gradient(plain, seed=2), gradient(exact, seed=2))
    # The gradient depends on the noise, so a fresh seed shows that it is drawn anew.
    assert not torch.equal(gradient(purifier), gradient(purifier))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal_and_independent(purifier, make_images, duplicate):
    x = make_images(2, 1, 8, 8)
    before = purifier(x, seed=1)
    other = duplicate(purifier)
    assert torch.equal(other(x, seed=1), before)
    assert (other.chain, other.value_range, other.backend) == (
        purifier.chain,
        purifier.value_range,
        purifier.backend,
    )
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert torch.equal(purifier(x, seed=1), before)


def test_moves_with_to(purifier, make_images):
    moved = copy.deepcopy(purifier).to(torch.float64)
    assert all(p.dtype == torch.float64 for p in moved.parameters())
    result = moved(make_images(2, 1, 8, 8).double(), seed=1)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), purifier(make_images(2, 1, 8, 8), seed=1), rtol=0, atol=1e-5)
    assert moved.purify(make_images(2, 1, 8, 8)).dtype == torch.float32


def test_weights_changed_in_place_take_effect(purifier, make_images):
    x = make_images(2, 1, 8, 8)
    before = purifier(x, seed=1)
    with torch.no_grad():
        purifier.autoencoder.conv3.bias.add_(0.5)
    assert not torch.equal(purifier(x, seed=1), before)


@pytest.mark.parametrize("value_range", [(0.0, 255.0), (-1.0, 1.0), (-0.3, 0.9)])
def test_value_ranges_are_mapped(purifier, make_images, value_range):
    low, high = value_range
    x = make_images(3, 1, 8, 8)
    other = Purifier(purifier.autoencoder, purifier.chain, value_range=value_range)
    scaled = (x * (high - low) + low).clamp(low, high)
    expected = purifier.purify(x, seed=1) * (high - low) + low
    for result in (other.purify(scaled, seed=1), other(scaled, seed=1), other.trajectory(scaled, seed=1)[-1]):
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * (high - low))
    torch.testing.assert_close(other.trajectory(scaled, seed=1)[0], scaled, rtol=0, atol=2e-6 * (high - low))
    # What was purified may be purified again: rounding never leaves the range.
    other.purify(other.purify(scaled, seed=1, noise_scale=3.0), seed=1)


def test_trajectory(purifier, make_images):
    x = make_images(3, 1, 8, 8)
    states = purifier.trajectory(x, seed=1)
    assert states.shape == (4, 3, 1, 8, 8)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], purifier(x, seed=1))


def test_chain_overrides_last_one_call(purifier, make_images):
    x = make_images(3, 1, 8, 8)
    before = purifier.chain
    assert torch.equal(purifier.purify(x, n_steps=0), x)
    once = purifier.purify(x, seed=1, n_steps=1, step_size=1.0, noise_scale=0.0)
    torch.testing.assert_close(once, purifier.autoencoder(x).clamp(0, 1), rtol=0, atol=1e-6)
    assert purifier.chain is before
    with pytest.raises(TypeError, match="unknown chain setting steps"):
        purifier.purify(x, steps=3)


def test_purify_randomness(purifier, make_images):
    x = make_images(4, 1, 8, 8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    fresh = [purifier.purify(x) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(fresh[0], fresh[1])
    torch.manual_seed(0)
    assert not torch.equal(purifier.purify(x), fresh[0])
    whole = purifier.purify(x, seed=9)
    assert torch.equal(whole, purifier.purify(x, seed=9))
    torch.manual_seed(7)
    assert torch.equal(whole, purifier.purify(x, seed=9))
    shards = [purifier.purify(x[k : k + 2], seed=9, sample_ids=np.arange(k, k + 2)) for k in (0, 2)]
    torch.testing.assert_close(torch.cat(shards), whole, rtol=0, atol=1e-5)
    # Images in another order with their own ids: the same results in that order.
    order = [2, 0, 3, 1]
    torch.testing.assert_close(purifier.purify(x[order], seed=9, sample_ids=order), whole[order], rtol=0, atol=1e-5)


def test_purify_gives_no_gradient_and_forward_does(purifier, make_images):
    x = make_images(2, 1, 8, 8).requires_grad_()
    assert not purifier.purify(x).requires_grad
    assert purifier(x).requires_grad
    with torch.no_grad():
        assert not purifier(x).requires_grad


def test_clamp_none_may_leave_the_range(purifier, make_images):
    x = make_images(2, 1, 8, 8)
    assert float(purifier.purify(x, clamp="none", noise_scale=2.0).max()) > 1.0
    assert float(purifier.purify(x, noise_scale=2.0).max()) <= 1.0


def test_divergence_is_an_error(purifier, make_images):
    with pytest.raises(FloatingPointError, match="diverged"):
        purifier.purify(make_images(2, 1, 8, 8), step_size=1e30, n_steps=3, clamp="none")


class Shift(nn.Module):
    """A user's own autoencoder: no parameters, any channels and sizes."""

    def forward(self, x):
        return 1.0 - x


def test_user_module(make_images):
    purifier = Purifier(Shift(), ChainConfig(n_steps=1, step_size=1.0, noise_scale=0.0))
    x = make_images(2, 3, 5, 7)
    torch.testing.assert_close(purifier.purify(x), 1.0 - x, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected shape \(B, C, H, W\).*got \(5, 7\)"):
        purifier.purify(x[0, 0])
    if backends.available()["cpu"] is None:
        torch.testing.assert_close(purifier.purify(x, backend="cpu"), 1.0 - x, rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match=r"expected a fastmalade\.Autoencoder to save, got Shift"):
        purifier.save_pretrained("never-written.safetensors")


def test_plain_function_as_autoencoder(make_images):
    purifier = Purifier(torch.tanh, ChainConfig(n_steps=1, step_size=1.0, noise_scale=0.0))
    x = make_images(2, 1, 5, 7)
    torch.testing.assert_close(purifier.purify(x), torch.tanh(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"autoencoder": 3}, TypeError, "autoencoder: expected"),
        ({"chain": {"n_steps": 3}}, TypeError, "chain: expected a ChainConfig, got dict"),
        ({"value_range": (1.0, 0.0)}, ValueError, "value_range: expected"),
        ({"value_range": (0.0, float("inf"))}, ValueError, "value_range: expected"),
        ({"backend": "tpu"}, ValueError, "backend: expected one of torch, cpu"),
    ],
)
def test_arguments_are_checked(make_autoencoder, change, error, message):
    arguments = {"autoencoder": make_autoencoder(), "chain": ChainConfig(), **change}
    with pytest.raises(error, match=message):
        Purifier(**arguments)
