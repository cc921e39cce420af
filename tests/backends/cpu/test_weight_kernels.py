"""The native gradient with respect to the weights against float64 autograd, and the bitwise promises."""

from __future__ import annotations

import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.gradient_plan import GradientPlan
from fastmalade.backends.values import NoiseSource, Steps

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 4, 4), (2, 8, 12), (3, 20, 36), (1, 4, 40), (2, 44, 4), (3, 64, 64)]
HIDDEN = [(10, 25), (1, 1), (16, 40)]
FORMS = ["throughput", "quad", "latency"]
IDS = [3, 10**12, -4, 0, 8, 11, 12, 13, 99, 5, 7]
INFINITY = float("inf")


def normals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(batch: int, shape: tuple[int, int, int], seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))


def steps(n_steps: int, low: float = -INFINITY, high: float = INFINITY) -> Steps:
    sizes = [0.3 / (1 + 0.1 * t) for t in range(n_steps)]
    return Steps(sizes, [0.1 if t % 5 else 0.0 for t in range(n_steps)], [low] * n_steps, [high] * n_steps)


def run(cotangent, x, weights, chain: Steps, *, ids=None, **options) -> torch.Tensor:
    source = NoiseSource(77, torch.arange(len(x)) if ids is None else torch.tensor(ids[: len(x)]))
    gradient, of_weights = cpu.chain_and_weight_gradients(cotangent, x, weights, chain, source, **options)
    assert torch.equal(gradient, cpu.chain_gradient(cotangent, x, weights, chain, source))
    return of_weights


def by_autograd(cotangent, x, weights, chain: Steps, noise, dtype) -> list[torch.Tensor]:
    leaves = [weight.to(dtype).requires_grad_(True) for weight in weights]
    bounds = (chain.lows[0], chain.highs[0]) if chain.n_steps else (-INFINITY, INFINITY)
    states = reference64.chain(x.to(dtype), leaves, chain.step_sizes, chain.noise_scales, noise.to(dtype), *bounds)
    return list(torch.autograd.grad(states[-1], leaves, cotangent.to(dtype)))


def noise_of(ids: list[int], n_steps: int, shape: tuple[int, int, int]) -> torch.Tensor:
    count = shape[0] * shape[1] * shape[2]
    return torch.stack(
        [torch.from_numpy(reference64.normals(77, ids, t, count)).reshape(-1, *shape) for t in range(n_steps)]
    )


def assert_within_rule(found: torch.Tensor, single: list[torch.Tensor], exact: list[torch.Tensor], case: str) -> None:
    """The project's tolerance rule for all ten arrays as one: a bias alone is too few numbers to measure torch by."""
    flat, reference = (torch.cat([array.flatten() for array in arrays]) for arrays in (single, exact))
    reference64.assert_within_rule(found, flat, reference, case)


@pytest.mark.parametrize("bounds", [(-INFINITY, INFINITY), (0.0, 1.0)], ids=["free", "clamped"])
@pytest.mark.parametrize("n_steps", [1, 10])
def test_within_the_tolerance_rule(isa: str, n_steps: int, bounds) -> None:
    weights, shape, ids = reference64.random_weights(1, 10, 25), (1, 28, 28), IDS[:5]
    x, cotangent, chain = images(5, shape), normals(2, 5, *shape), steps(n_steps, *bounds)
    noise = noise_of(ids, n_steps, shape)
    exact, single = (by_autograd(cotangent, x, weights, chain, noise, d) for d in (torch.float64, torch.float32))
    for form in FORMS:
        assert_within_rule(run(cotangent, x, weights, chain, ids=ids, form=form), single, exact, form)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes(isa: str, shape, hidden) -> None:
    weights, chain = reference64.random_weights(shape[0], *hidden), steps(2, 0.0, 1.0)
    x, cotangent = images(3, shape), normals(2, 3, *shape)
    noise = noise_of(IDS[:3], 2, shape)
    exact, single = (by_autograd(cotangent, x, weights, chain, noise, d) for d in (torch.float64, torch.float32))
    found = {form: run(cotangent, x, weights, chain, ids=IDS, form=form) for form in FORMS}
    assert_within_rule(found["throughput"], single, exact, f"{shape} {hidden}")
    assert all(torch.equal(other, found["throughput"]) for other in found.values())


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 8, 9, 31, 70])
def test_the_same_bits_for_forms_threads_and_budgets(isa: str, batch: int) -> None:
    weights, chain, shape = reference64.random_weights(1, 10, 25), steps(4), (1, 28, 28)
    x, cotangent = images(batch, shape), normals(2, batch, *shape)
    torch.set_num_threads(1)
    expected = run(cotangent, x, weights, chain)
    assert bool(expected.any()) == (batch > 0)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for form in ("auto", *FORMS):
            assert torch.equal(run(cotangent, x, weights, chain, form=form), expected), (threads, form)
        if batch:
            plan = cpu.gradient_plan(x.shape, (10, 25), chain.n_steps, weights=True)
            again = run(cotangent, x, weights, chain, max_bytes=plan.least_bytes)
            assert torch.equal(again, expected), threads


def test_an_image_adds_the_same_bits_in_every_batch(isa: str) -> None:
    weights, chain, shape = reference64.random_weights(1, 10, 25), steps(3), (1, 28, 28)
    x, cotangent = images(11, shape), normals(2, 11, *shape)
    alone = [run(cotangent[n : n + 1], x[n : n + 1], weights, chain, ids=IDS[n:]) for n in range(11)]
    together = run(cotangent, x, weights, chain, ids=IDS)
    # What the engine adds is in single precision, but for the sums over columns and the constant pixels, which the last
    # biases and conv3 take part in.
    exact = sum(weight.numel() for weight in weights[:5])
    summed = torch.stack(alone).double().sum(0).float()
    assert torch.equal(summed[:exact], together[:exact])
    torch.testing.assert_close(summed, together, rtol=1e-6, atol=1e-6 * float(together.abs().max()))
    turned = run(cotangent.flip(0), x.flip(0), weights, chain, ids=IDS[::-1])
    torch.testing.assert_close(turned, together, rtol=1e-6, atol=1e-6 * float(together.abs().max()))


def test_the_plan_counts_what_the_weights_need() -> None:
    torch.set_num_threads(2)
    images_alone, both = (cpu.gradient_plan((64, 1, 28, 28), (10, 25), 10, 2**25, weights=w) for w in (False, True))
    assert isinstance(both, GradientPlan)
    assert both.least_bytes > images_alone.least_bytes
    x = images(64, (1, 28, 28))
    weights = reference64.random_weights(1, 10, 25)
    with pytest.raises(ValueError, match=f"max_bytes: expected at least {both.least_bytes}"):
        run(x, x, weights, steps(10), max_bytes=images_alone.least_bytes)


def test_steps_of_no_size_and_no_steps() -> None:
    weights, shape = reference64.random_weights(1, 3, 5), (1, 8, 8)
    x, cotangent = images(3, shape), normals(2, 3, *shape)
    assert not bool(run(cotangent, x, weights, steps(0)).any())
    still = Steps([0.0, 0.0], [0.1, 0.1], [0.0, 0.0], [1.0, 1.0])
    assert not bool(run(cotangent, x, weights, still).any())


def test_a_cotangent_that_is_not_finite_stays_in_its_image() -> None:
    weights, shape = reference64.random_weights(1, 3, 5), (1, 28, 28)
    x, cotangent = images(9, shape), normals(2, 9, *shape)
    cotangent[4] = torch.nan
    source = NoiseSource(77, torch.arange(9))
    gradient, of_weights = cpu.chain_and_weight_gradients(cotangent, x, weights, steps(2), source)
    assert bool(gradient[:4].isfinite().all())
    assert bool(gradient[5:].isfinite().all())
    assert not bool(of_weights.isfinite().any())
