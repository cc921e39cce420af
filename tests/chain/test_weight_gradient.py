"""Models that are not frozen: the gradient of the images is that of a frozen one, and the weights have theirs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmalade
from fastmalade import ChainConfig, Purifier
from fastmalade.chain import direct, operators, weight_gradient

CHAIN = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)
SHAPES = [(1, 1, 8, 12), (5, 1, 28, 28), (2, 3, 16, 8)]


@pytest.fixture
def counted(monkeypatch) -> list[bool]:
    """One entry for each backward pass of the operator: whether it had the weights' gradients to compute."""
    seen: list[bool] = []
    exact = torch.ops.fastmalade.langevin_chain_backward

    def observed(*arguments):
        seen.append(arguments[12])
        return exact(*arguments)

    monkeypatch.setattr(torch.ops.fastmalade, "langevin_chain_backward", observed)
    return seen


def both(make_autoencoder, channels, **options) -> tuple[Purifier, Purifier]:
    frozen = Purifier(make_autoencoder(channels).requires_grad_(False), CHAIN, **options)
    free = copy.deepcopy(frozen)
    free.autoencoder.requires_grad_(True)
    return frozen, free


def by_the_operator(model: Purifier, x: torch.Tensor, seed: int) -> torch.Tensor:
    """The chain as one operator with images and weights in one node."""
    noise = fastmalade.backends.values.NoiseSource(seed)
    backend = model.backend or "cpu"
    return operators.call_chain(x, model.autoencoder.weights(), model.chain.steps(), noise, backend, None, "fp32")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", ["none", "least"])
def test_the_images_alone(make_autoencoder, make_images, backend, counted, shape, budget):
    frozen, free = both(make_autoencoder, shape[1], backend=backend)
    if budget == "least":  # a group of images is wider on wider registers
        least = frozen.gradient_plan(torch.empty(shape, device="meta"), max_bytes=2**62).least_bytes
        frozen, free = both(make_autoencoder, shape[1], backend=backend, max_bytes=least)
    found = []
    for model in (frozen, free):
        x = make_images(*shape).requires_grad_(True)
        result = model(x, seed=5)
        found.append((result.detach(), torch.autograd.grad(result, x, make_images(*shape, seed=2))[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert True not in counted
    assert all(weight.grad is None for weight in free.autoencoder.weights())


@pytest.mark.parametrize("shape", SHAPES)
def test_images_and_weights(make_autoencoder, make_images, backend, shape):
    frozen, free = both(make_autoencoder, shape[1], backend=backend)
    expected, cotangent = copy.deepcopy(free), make_images(*shape, seed=2)
    x = make_images(*shape).requires_grad_(True)
    free(x, seed=5).backward(cotangent)
    y = make_images(*shape).requires_grad_(True)
    by_the_operator(expected, y, 5).backward(cotangent)
    for weight, other in zip(free.autoencoder.weights(), expected.autoencoder.weights(), strict=True):
        assert torch.equal(weight.grad, other.grad)
        assert weight.grad.shape == weight.shape
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-5)
    alone = make_images(*shape).requires_grad_(True)
    frozen(alone, seed=5).backward(cotangent)
    assert torch.equal(x.grad, alone.grad)
    free(make_images(*shape), seed=5).backward(cotangent)  # images without gradient; sums up
    for weight, other in zip(free.autoencoder.weights(), expected.autoencoder.weights(), strict=True):
        assert torch.equal(weight.grad, 2 * other.grad)


def test_some_weights(make_autoencoder, make_images, backend):
    _, free = both(make_autoencoder, 1, backend=backend)
    x = make_images(2, 1, 8, 8)
    free(x, seed=5).sum().backward()
    expected = [weight.grad for weight in free.autoencoder.weights()]
    free.zero_grad()
    free.autoencoder.requires_grad_(False)
    free.autoencoder.conv2.bias.requires_grad_(True)
    free(x, seed=5).sum().backward()
    for n, weight in enumerate(free.autoencoder.weights()):
        assert weight.grad is None if n != 3 else torch.equal(weight.grad, expected[n])
    (asked,) = torch.autograd.grad(free(x, seed=5).sum(), free.autoencoder.conv2.bias)
    assert torch.equal(asked, expected[3])


def test_zeros_keep_their_sign(make_images, backend):
    model = fastmalade.Autoencoder(generator=torch.Generator().manual_seed(0))
    x = torch.tensor([0.0, -0.0]).repeat(32).reshape(1, 1, 8, 8).requires_grad_(True)
    result = fastmalade.langevin_chain(x, model, [0.0], [0.0], backend=backend)
    frozen = fastmalade.langevin_chain(x, model.requires_grad_(False), [0.0], [0.0], backend=backend)
    assert torch.equal(torch.signbit(result), torch.signbit(frozen))


def test_weights_that_are_no_leaves(make_autoencoder, make_images):
    """As a hypernetwork or ``functional_call`` make them: each call leads somewhere else."""
    model, x = make_autoencoder(), make_images(2, 1, 8, 8)
    scale = torch.tensor(0.5, requires_grad=True)
    found = []
    for _ in range(2):
        made = {name: value.detach() * scale for name, value in model.named_parameters()}
        purifier = Purifier(model, CHAIN)
        result = torch.func.functional_call(
            purifier, {f"autoencoder.{n}": v for n, v in made.items()}, (x,), {"seed": 5}
        )
        found.append(torch.autograd.grad(result.sum(), scale)[0])
    assert torch.equal(*found)
    shift = 1e-3
    halves = []
    for factor in (0.5 - shift, 0.5 + shift):
        changed = copy.deepcopy(model).requires_grad_(False)
        for weight in changed.weights():
            weight *= factor
        halves.append(Purifier(changed, CHAIN)(x, seed=5).double().sum())
    torch.testing.assert_close(found[0].double(), (halves[1] - halves[0]) / (2 * shift), rtol=2e-2, atol=1e-3)


def test_replaced_refrozen_and_written_to(make_autoencoder, make_images):
    _, free = both(make_autoencoder, 1)
    x = make_images(2, 1, 8, 8)
    free(x, seed=5).sum().backward()
    layer = free.autoencoder.conv1
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    free(x, seed=5).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    layer.weight.requires_grad_(False)
    layer.weight.grad = None
    free(x, seed=5).sum().backward()
    assert layer.weight.grad is None
    result = free(x, seed=5)
    with torch.no_grad():
        free.autoencoder.conv2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        result.sum().backward()


def test_double_backward_is_refused(make_autoencoder, make_images):
    _, free = both(make_autoencoder, 1)
    x = make_images(2, 1, 8, 8).requires_grad_(True)
    for wanted in ([x], list(free.autoencoder.weights())):
        gradients = torch.autograd.grad(free(x, seed=5).sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match=operators.DOUBLE_BACKWARD[:20]):
            gradients[0].square().sum().backward()


def test_two_graphs_and_checkpoints(make_autoencoder, make_images):
    _, free = both(make_autoencoder, 1)
    x = make_images(2, 1, 8, 8)
    (free(x, seed=5).sum() + free(x, seed=6).sum()).backward()
    together = [weight.grad.clone() for weight in free.autoencoder.weights()]
    free.zero_grad()
    for seed in (5, 6):
        checkpoint(free, x, seed=seed, use_reentrant=False).sum().backward()
    for weight, expected in zip(free.autoencoder.weights(), together, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-6)


def test_nothing_outlives_the_model(make_autoencoder, make_images):
    _, free = both(make_autoencoder, 1)
    weight = weakref.ref(free.autoencoder.conv1.weight)
    free(make_images(2, 1, 8, 8), seed=5).sum().backward()
    del free
    gc.collect()
    assert weight() is None


def test_the_long_way_has_the_same_gradients(make_autoencoder, make_images, monkeypatch):
    _, free = both(make_autoencoder, 1)
    x = make_images(3, 1, 8, 8)

    def gradients():
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(free(leaf, seed=5).square().sum(), [leaf, *free.autoencoder.weights()])

    short = gradients()
    monkeypatch.setattr(direct, "run", lambda *arguments, **options: None)
    assert all(torch.equal(a, b) for a, b in zip(short, gradients(), strict=True))
    assert len(weight_gradient._known) >= 1


def test_one_way_back_serves_images_and_weights(make_autoencoder, make_images, monkeypatch):
    from fastmalade.backends.cpu import calls as cpu

    _, free = both(make_autoencoder, 1)
    ran = []
    for name in ("chain_gradient", "chain_and_weight_gradients"):
        exact = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, name=name, exact=exact, **o: (ran.append(name), exact(*a, **o))[1])
    x = make_images(3, 1, 8, 8).requires_grad_(True)
    weights = list(free.autoencoder.weights())
    result = free(x, seed=5).square().sum()
    together = torch.autograd.grad(result, [x, *weights], retain_graph=True)
    assert ran == ["chain_and_weight_gradients"]
    again = torch.autograd.grad(result, [x, *weights], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    ran.clear()
    (alone,) = torch.autograd.grad(result, x, retain_graph=True)
    assert ran == []  # from the activations that the forward pass kept
    assert torch.equal(alone, together[0])
    some = torch.autograd.grad(result, weights[2:4], retain_graph=True)
    assert torch.equal(some[0], together[3])
    assert torch.equal(some[1], together[4])


@pytest.mark.parametrize("shape", SHAPES)
def test_against_finite_differences(make_autoencoder, make_images, shape):
    _, free = both(make_autoencoder, shape[1])
    x, cotangent = make_images(*shape), make_images(*shape, seed=2)
    gradients = torch.autograd.grad(free(x, seed=5), list(free.autoencoder.weights()), cotangent)
    exact = copy.deepcopy(free).double().requires_grad_(False)
    noise = torch.stack(
        [fastmalade.standard_normal(5, torch.arange(len(x)), t, shape[1:]) for t in range(CHAIN.n_steps)]
    ).double()
    generator = torch.Generator().manual_seed(3)
    for n, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        values = []
        for shift in (1e-6, -1e-6):
            changed = copy.deepcopy(exact)
            changed.autoencoder.weights()[n].add_(shift * direction)
            values.append(float((changed(x.double(), noise=noise) * cotangent).sum()))
        slope = (values[0] - values[1]) / 2e-6
        length = float(gradient.double().norm() * direction.norm())
        assert slope == pytest.approx(float((gradient.double() * direction).sum()), abs=1e-5 * length + 1e-6), n
