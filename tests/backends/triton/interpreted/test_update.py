"""The update for an r(x) computed elsewhere, its gradient, and user modules that run through it."""

from __future__ import annotations

import math

import pytest
import reference64
import torch
from torch import Tensor

import fastmalade
from fastmalade import backends, reference
from fastmalade.backends.triton import calls as backend
from fastmalade.backends.values import NoiseSource, Step

A, D, SEED, STEP = 0.3, 0.2, 2**63 + 5, 4
SHAPES = [(1, 1, 1, 1), (3, 1, 28, 28), (5, 3, 5, 7)]


def operands(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    ids = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=generator)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator), ids


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.2, 0.7)])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_within_the_rule(shape, bounds) -> None:
    x, r, ids = operands(shape)
    z = torch.from_numpy(reference64.normals(SEED, ids.tolist(), STEP, math.prod(shape[1:]))).reshape(shape)
    cotangent = operands(shape)[1].flip(0) - 0.4

    def by_autograd(dtype: torch.dtype) -> tuple[Tensor, ...]:
        state, reconstruction = (t.to(dtype).requires_grad_() for t in (x, r))
        value = (state + A * (reconstruction - state) + D * z.to(dtype)).clamp(*bounds)
        return value.detach(), *torch.autograd.grad(value, (state, reconstruction), cotangent.to(dtype))

    step, noise = Step(STEP, A, D, *bounds), NoiseSource(SEED, ids)
    value = backend.langevin_update(x, r, step, noise)
    gradients = backend.langevin_update_vjp(cotangent, x, r, step, noise)
    for got, single, exact in zip(
        (value, *gradients), by_autograd(torch.float32), by_autograd(torch.float64), strict=True
    ):
        reference64.assert_within_rule(got, single, exact)


def test_the_noise_is_that_of_standard_normal_to_the_bit() -> None:
    x, r, ids = operands((3, 3, 5, 7))
    z = backend.standard_normal(SEED, ids, STEP, 105).reshape(x.shape)
    noise, unbounded, zeros = NoiseSource(SEED, ids), (-math.inf, math.inf), torch.zeros_like(x)
    assert torch.equal(backend.langevin_update(zeros, zeros, Step(STEP, 0.0, 1.0, *unbounded), noise), z)
    step = Step(STEP, A, D, *unbounded)
    drawn = backend.langevin_update(x, r, step, noise)
    assert torch.equal(drawn, backend.langevin_update(x, r, step, noise._replace(given=z)))


def test_zero_noise_nan_and_the_closed_interval() -> None:
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, math.nan]).reshape(1, 1, 2, 3)
    step = Step(0, 0.0, 0.0, 0.0, 1.0)
    value = backend.langevin_update(x, torch.zeros_like(x), step, NoiseSource(1))
    assert value.flatten().tolist()[:5] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert math.isnan(value.flatten()[5])
    gradient, through = backend.langevin_update_vjp(torch.ones_like(x), x, torch.zeros_like(x), step, NoiseSource(1))
    assert gradient.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert int(through.count_nonzero()) == 0


def test_layouts_and_empty_batches() -> None:
    x, r, ids = operands((4, 3, 6, 10))
    step, noise = Step(0, A, D, 0.0, 1.0), NoiseSource(1, ids)
    expected = backend.langevin_update(x, r, step, noise)
    assert torch.equal(backend.langevin_update(x.to(memory_format=torch.channels_last), r, step, noise), expected)
    assert torch.equal(backend.langevin_update(torch._neg_view(-x), r, step, noise), expected)
    assert backend.langevin_update(x[:0], r[:0], step, NoiseSource(1, ids[:0])).shape == (0, 3, 6, 10)


@pytest.mark.parametrize("clamp", [None, (0.1, 0.6)])
def test_user_modules_through_the_operator(clamp) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.Tanh())
    x = operands((3, 2, 6, 5))[0]
    a, d = [0.5, 0.4], [0.2, 0.0]

    def gradients(module: torch.nn.Module, dtype: torch.dtype, name: str) -> tuple[Tensor, ...]:
        leaf = x.to(dtype).requires_grad_()
        y = fastmalade.langevin_chain(leaf, module.to(dtype), a, d, seed=4, clamp=clamp, backend=name)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (leaf, *module.parameters()))

    got = gradients(model, torch.float32, "triton")
    single = gradients(model, torch.float32, "torch")
    exact = gradients(model, torch.float64, "torch")
    for value, in_float32, in_float64 in zip(got, single, exact, strict=True):
        scale = max(1.0, float(in_float64.abs().max()))
        reference64.assert_within_rule(value / scale, in_float32 / scale, in_float64 / scale)


def test_table8_autoencoders_through_the_operator() -> None:
    autoencoder = fastmalade.Autoencoder(1, (1, 2), generator=torch.Generator().manual_seed(0))
    x, z = operands((2, 1, 4, 4))[0], operands((2, 1, 4, 4))[0][None]

    def gradients(name: str, *, noise: Tensor | None, weights: bool) -> tuple[Tensor, ...]:
        autoencoder.requires_grad_(weights)
        leaf = x.clone().requires_grad_()
        leaves = [leaf] if noise is None else [leaf, noise.requires_grad_()]
        options = {"noise": noise} if noise is not None else {"seed": 3}
        y = fastmalade.langevin_chain(leaf, autoencoder, [0.5], [0.2], clamp=(0.1, 0.8), backend=name, **options)
        wanted = [*leaves, *autoencoder.parameters()] if weights else leaves
        return y.detach(), *torch.autograd.grad(y.square().sum(), wanted)

    for noise, weights in ((None, False), (z, True)):
        for got, expected in zip(
            gradients("triton", noise=noise, weights=weights),
            gradients("torch", noise=noise, weights=weights),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def test_dispatch_and_the_words_of_a_refusal() -> None:
    cpu = torch.device("cpu")
    assert backends.available()["triton"] is None
    assert backends.resolve("triton", device=cpu, dtype=torch.float32) == "triton"
    # The interpreter is for tests: nothing chooses it by itself.
    assert backends.resolve(None, device=cpu, dtype=torch.float32) != "triton"
    with pytest.raises(fastmalade.BackendUnavailableError, match=r"expected dtype torch\.float32, got torch\.float64"):
        backends.resolve("triton", device=cpu, dtype=torch.float64)


def test_the_reference_reads_a_seed_tensor() -> None:
    ids = torch.tensor([3, -4])
    for seed in (7, 2**63 + 7):
        bits = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
        assert torch.equal(reference.philox_words(bits, ids, 5, 9), reference.philox_words(seed, ids, 5, 9))
