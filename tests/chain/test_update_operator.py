"""fastmalade::langevin_update, and chains of user modules that run through it."""

from __future__ import annotations

import math

import pytest
import reference64
import torch

import fastmalade
from fastmalade import langevin_chain, langevin_trajectory, reference
from fastmalade.chain import operators as ops
from fastmalade.seeds import check_sample_ids

A, D = [0.5, 0.4, 0.3], [0.2, 0.0, 0.1]


class Blur(torch.nn.Module):
    """r(x) of a user's: any channels, any size, parameters to differentiate by."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels, channels, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.3, 0.4, generator=generator)

    def forward(self, x):
        return torch.tanh(self.convolution(x))


def update(x, r, backend, *, a=0.4, d=0.3, low=-math.inf, high=math.inf, noise=None, seed=5):
    ids = check_sample_ids(None, x.shape[0])
    seed = ops.seed_bits(seed)
    return torch.ops.fastmalade.langevin_update(x, r, a, d, low, high, seed, ids, 2, noise, backend)


@pytest.mark.parametrize("explicit_noise", [False, True])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.2, 0.7)], ids=["free", "clamped"])
def test_values_and_gradients(make_images, backend, bounds, explicit_noise):
    low, high = bounds
    x, r, z = (make_images(3, 2, 5, 7, seed=n) for n in (1, 2, 3))
    if not explicit_noise:
        z = fastmalade.standard_normal(5, range(3), 2, (2, 5, 7), backend=backend)
    got = [t.clone().requires_grad_() for t in (x, r, z)]
    exact = [t.double().requires_grad_() for t in (x, r, z)]
    result = update(got[0], got[1], backend, low=low, high=high, noise=got[2] if explicit_noise else None)
    expected = (exact[0] + 0.4 * (exact[1] - exact[0]) + 0.3 * exact[2]).clamp(low, high)
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    if bounds[0] > -math.inf:
        assert 0 < int((result == low).sum() + (result == high).sum()) < result.numel()
    cotangent = make_images(3, 2, 5, 7, seed=9) - 0.5
    wanted = 3 if explicit_noise else 2
    gradients = torch.autograd.grad(result, got[:wanted], cotangent)
    for value, reference_value in zip(
        gradients, torch.autograd.grad(expected, exact[:wanted], cotangent.double()), strict=True
    ):
        torch.testing.assert_close(value.double(), reference_value, rtol=0, atol=1e-6)


def test_gradient_on_the_closed_interval(backend):
    """Without step and noise x stays: elements on a bound pass the gradient, those outside and NaN do not."""
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, math.nan]).reshape(1, 1, 2, 3).requires_grad_()
    result = update(x, torch.zeros_like(x), backend, a=0.0, d=0.0, low=0.0, high=1.0)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_double_backward_is_that_of_torch(make_images, backend):
    x, z = make_images(2, 3, 5, 5), make_images(3, 2, 3, 5, 5, seed=3)

    def second(chain):
        model = Blur().double() if chain == "exact" else Blur()
        leaf = x.to(next(model.parameters()).dtype).requires_grad_()
        noise = z.to(leaf.dtype)
        bounds = {"lows": [0.1] * 3, "highs": [0.6] * 3}
        if chain == "exact":
            y = reference.langevin_chain(leaf, model, A, D, noise=noise, **bounds)
        else:
            y = langevin_chain(leaf, model, A, D, noise=noise, clamp=(0.1, 0.6), backend=backend)
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    exact = second("exact")
    assert float(exact.abs().max()) > 0.01
    torch.testing.assert_close(second("operator").double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("explicit_noise", [False, True])
@pytest.mark.slow
def test_opcheck(make_images, backend, explicit_noise):
    x, r = make_images(3, 1, 5, 6).requires_grad_(), make_images(3, 1, 5, 6, seed=2).requires_grad_()
    noise = make_images(3, 1, 5, 6, seed=3).requires_grad_() if explicit_noise else None
    ids, seed = check_sample_ids(None, 3), ops.seed_bits(1)
    for low, high in [(-math.inf, math.inf), (0.2, 0.7)]:
        arguments = (x, r, 0.4, 0.3, low, high, seed, ids, 2, noise, backend)
        torch.library.opcheck(torch.ops.fastmalade.langevin_update.default, arguments)


def test_unknown_backend(make_images):
    x = make_images(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"backend: expected one of torch, cpu.*, got 'tpu'"):
        update(x, x, "tpu")


def chain_gradients(model, x, backend, **options):
    leaf = x.clone().requires_grad_()
    y = langevin_chain(leaf, model, A, D, seed=4, clamp=(0.1, 0.6), backend=backend, **options)
    return (y.detach(), *torch.autograd.grad(y.square().sum(), (leaf, *model.parameters())))


@pytest.mark.parametrize("shape", [(5, 3, 9, 7), (1, 3, 64, 80)])
def test_user_module_within_the_tolerance_rule(make_images, backend, shape):
    x = make_images(*shape)
    got, single = chain_gradients(Blur(), x, backend), chain_gradients(Blur(), x, "torch")
    exact = chain_gradients(Blur().double(), x.double(), "torch")
    for value, in_float32, reference_value in zip(got, single, exact, strict=True):
        scale = max(1.0, float(reference_value.abs().max()))
        reference64.assert_within_rule(value / scale, in_float32 / scale, reference_value / scale)


def test_the_same_with_and_without_gradients(make_images, backend):
    """Below the dispatcher and through it."""
    x, model = make_images(3, 3, 9, 7), Blur()
    options = {"seed": 4, "clamp": (0.1, 0.6), "backend": backend}
    recorded = langevin_chain(x, model, A, D, **options)
    assert recorded.requires_grad
    with torch.no_grad():
        assert torch.equal(langevin_chain(x, model, A, D, **options), recorded)
    states = langevin_trajectory(x, model, A, D, **options)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], recorded)


def test_native_results_do_not_depend_on_the_batch(make_images, backend):
    if backend != "cpu":
        pytest.skip("the torch backend is held to rounding")
    x, ids = make_images(17, 3, 9, 7), torch.arange(17) * 10**12

    def pointwise(v):  # a forward that does not depend on the batch either
        return 1.0 - v * v

    whole = langevin_chain(x, pointwise, A, D, seed=4, sample_ids=ids, backend="cpu")
    for part in (slice(0, 1), slice(3, 9), slice(16, 17)):
        assert torch.equal(langevin_chain(x[part], pointwise, A, D, seed=4, sample_ids=ids[part]), whole[part])


def test_output_of_another_dtype(make_images, backend):
    x = make_images(2, 1, 4, 4)
    expected = langevin_chain(x, lambda v: v.square().bfloat16().float(), A, D, seed=1, backend=backend)
    result = langevin_chain(x, lambda v: v.square().bfloat16(), A, D, seed=1, backend=backend)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    with pytest.raises(TypeError, match=r"autoencoder: expected a floating output, got torch\.int64"):
        langevin_chain(x, lambda v: v.long(), A, D, backend=backend)


def test_transformations_go_through_torch(make_images, backend):
    x, noise = make_images(2, 1, 5, 5), make_images(3, 2, 1, 5, 5, seed=2)

    def chain(v):
        return langevin_chain(v, torch.sin, A, D, noise=noise, clamp=(0.1, 0.9), backend=backend)

    def exact(v):
        return reference.langevin_chain(v, torch.sin, A, D, noise=noise, lows=[0.1] * 3, highs=[0.9] * 3)

    tangent = make_images(2, 1, 5, 5, seed=7)
    for got, expected in zip(
        torch.func.jvp(chain, (x,), (tangent,)), torch.func.jvp(exact, (x,), (tangent,)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    stacked = torch.stack([x, 1 - x])
    torch.testing.assert_close(torch.func.vmap(chain)(stacked), torch.func.vmap(exact)(stacked), rtol=0, atol=1e-6)
    gradient = torch.func.grad(lambda v: chain(v).sum())(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda v: exact(v).sum())(x), rtol=0, atol=1e-6)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_user_module_equals_eager(make_images, backend):
    model, x = Blur(1), make_images(2, 1, 6, 6)

    def gradients(evaluate):
        leaf = x.clone().requires_grad_()
        y = evaluate(leaf)
        return y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]

    def chain(v):
        return langevin_chain(v, model, A, D, seed=2**64 - 5, clamp=(0.1, 0.6), backend=backend)

    compiled = gradients(torch.compile(chain, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled, gradients(chain), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_exported_user_module(make_images, backend):
    class Chain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Blur(1)

        def forward(self, v):
            return langevin_chain(v, self.model, A, D, seed=3, backend=backend)

    chain, x = Chain().requires_grad_(False), make_images(2, 1, 6, 6)
    program = torch.export.export(chain, (x,))
    assert any("langevin_update" in str(node.target) for node in program.graph.nodes) == (backend == "cpu")
    torch.testing.assert_close(program.module()(x), chain(x), rtol=0, atol=1e-6)
