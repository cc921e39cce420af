"""The functions of the CUDA backend over the emulation: what they check, hand on and give back."""

from __future__ import annotations

import pytest
import reference64
import torch
from emulated import drawn, images

from fastmalade.backends.cuda import calls as cuda
from fastmalade.backends.values import NoiseSource, Step, Steps

SHAPE, HIDDEN = (2, 8, 4), (3, 2)
STEPS = Steps((0.3, 0.2), (0.1, 0.1), (0.1, 0.1), (0.9, 0.9))
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_emulation")]


@pytest.fixture
def weights() -> list[torch.Tensor]:
    return reference64.random_weights(SHAPE[0], *HIDDEN)


def test_chain_and_trajectory(weights) -> None:
    x, noise = images(3, SHAPE), drawn(5, 3, 2, SHAPE)
    exact = reference64.chain(x.double(), weights, *STEPS[:2], noise, 0.1, 0.9)
    single = reference64.chain(x, weights, *STEPS[:2], noise, 0.1, 0.9)
    states = cuda.langevin_chain(x, weights, STEPS, NoiseSource(5), trajectory=True)
    reference64.assert_within_rule(states, single, exact)
    for form in ("general", "cluster"):
        assert torch.equal(cuda.langevin_chain(x, weights, STEPS, NoiseSource(5), form=form), states[-1])
    # Sample ids, a seed on the device and given noise are told apart.
    last, seed = torch.tensor([2]), torch.tensor([5])
    assert torch.equal(cuda.langevin_chain(x[2:], weights, STEPS, NoiseSource(seed, last)), states[-1, 2:])
    given = torch.stack([cuda.standard_normal(5, torch.arange(3), t, 64).reshape(x.shape) for t in range(2)])
    assert torch.equal(cuda.langevin_chain(x, weights, STEPS, NoiseSource(0, None, given)), states[-1])
    assert torch.equal(cuda.langevin_chain(x, weights, Steps((), (), (), ()), NoiseSource(0)), x)


def test_gradient_whole_and_in_parts(weights) -> None:
    x, cotangent = images(3, SHAPE), images(3, SHAPE, 2) - 0.5
    arguments = (cotangent, x, weights, STEPS, NoiseSource(5))
    whole = cuda.chain_gradient(*arguments)
    states = cuda.langevin_chain(x, weights, STEPS, NoiseSource(5), trajectory=True)

    def by_autograd(dtype: torch.dtype) -> torch.Tensor:
        g, noise = cotangent.to(dtype), drawn(5, 3, 2, SHAPE).to(dtype)
        for t in (1, 0):
            state = states[t].to(dtype).requires_grad_()
            free = state + STEPS.step_sizes[t] * (reference64.forward(state, weights) - state) + 0.1 * noise[t]
            (g,) = torch.autograd.grad(free.clamp(0.1, 0.9), state, g)
        return g

    reference64.assert_within_rule(whole, by_autograd(torch.float32), by_autograd(torch.float64))
    assert torch.equal(cuda.chain_gradient(*arguments, max_bytes=1), whole)
    assert torch.equal(cuda.chain_gradient(*arguments, form="general", images=2), whole)
    with pytest.raises(ValueError, match="max_bytes: expected at least 1 or None, got 0"):
        cuda.chain_gradient(*arguments, max_bytes=0)


def test_products_of_one_reconstruction(weights) -> None:
    x, cotangent = images(3, SHAPE), images(3, SHAPE, 2) - 0.5

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        at = x.to(dtype).requires_grad_()
        r = reference64.forward(at, weights)
        (product,) = torch.autograd.grad(r, at, cotangent.to(dtype), retain_graph=True)
        return r.detach(), product, torch.autograd.grad((at - r).square().sum(), at)[0]

    found = (
        cuda.autoencoder_forward(x, weights),
        cuda.autoencoder_vjp(cotangent, x, weights),
        cuda.reconstruction_error_gradient(x, weights),
    )
    for result, single, exact in zip(found, by_autograd(torch.float32), by_autograd(torch.float64), strict=True):
        reference64.assert_within_rule(result, single, exact)


def test_update_and_noise() -> None:
    x, r, ids = images(3, (5,)), images(3, (5,), 2), torch.tensor([4, -1, 2**40])
    z = cuda.standard_normal(2**64 - 3, ids, 7, 5)
    exact = torch.from_numpy(reference64.normals(2**64 - 3, ids.tolist(), 7, 5))
    torch.testing.assert_close(z.double(), exact, rtol=2e-6, atol=1e-6)
    words = cuda.philox_words(2**64 - 3, ids, 7, 5)
    assert (words.numpy() == reference64.philox_words(2**64 - 3, ids.tolist(), 7, 2)).all()
    step = Step(7, 0.3, 0.2, 0.1, 0.8)
    result = cuda.langevin_update(x, r, step, NoiseSource(2**64 - 3, ids))
    expected = (x.double() + 0.3 * (r.double() - x.double()) + 0.2 * exact).clamp(0.1, 0.8)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(cuda.langevin_update(x, r, step, NoiseSource(2**64 - 3, ids, z)), result)


def test_the_choice_of_a_form() -> None:
    assert cuda.choice(1, (1, 28, 28), (10, 25))["form"] == "cluster"
    found = cuda.choice(4096, (1, 28, 28), (10, 25))
    assert (found["form"], found["images"], found["resident"]) == ("digits", 8, True)
    assert cuda.supports((1, 28, 28), (10, 25), gradient=True) is None
    assert "images of 3x224x224" in cuda.supports((3, 224, 224), (10, 25), gradient=False)
    with pytest.raises(ValueError, match="expected general or cluster for this shape, got digits"):
        cuda.choice(1, SHAPE, HIDDEN, form="digits")
