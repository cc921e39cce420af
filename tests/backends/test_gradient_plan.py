"""Plans of a gradient: valid programs, within their budget, as short as possible; and budgets seen from outside."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmalade import ChainConfig, Purifier, langevin_chain
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.gradient_plan import DEFAULT_MAX_BYTES, Kind, Sizes, make_plan

A, D = [0.4, 0.3, 0.3, 0.2, 0.2], [0.1, 0.1, 0.0, 0.1, 0.1]


@functools.cache
def shortest(steps: int, checkpoints: int) -> int:
    """Forward steps of the best program that records one step at a time, by trying every place for a checkpoint."""
    if steps == 1:
        return 1
    if checkpoints == 0:
        return steps * (steps + 1) // 2
    return min(m + shortest(steps - m, checkpoints - 1) + shortest(m, checkpoints) for m in range(1, steps))


def simulate(plan) -> tuple[int, int, int]:
    """Forward steps, and the most checkpoints and records at once; raises where an action cannot be carried out."""
    saved, state, recorded, left, forward = {0: 0}, None, None, plan.n_steps, 0
    most_records = 0
    for kind, step, which in zip(*[iter(plan.numbers())] * 3, strict=True):
        if kind == Kind.LOAD:
            assert saved[which] == step
            state = step
        elif kind == Kind.SAVE:
            assert state == step
            assert which >= 1
            saved[which] = step
        elif kind == Kind.REVERSE:
            assert recorded == (step, which)
            assert step + which == left
            left = step
        else:
            assert state == step
            state += which
            forward += which
            if kind == Kind.RECORD:
                recorded, most_records = (step, which), max(most_records, which)
    assert left == 0
    return forward, max(saved), most_records


@settings(max_examples=5 * settings().max_examples)
@given(
    n_steps=st.integers(1, 120),
    fixed=st.integers(0, 50),
    state=st.integers(1, 20),
    record=st.integers(1, 100),
    workers=st.integers(1, 4),
    spare=st.integers(0, 3000),
)
def test_plans_are_valid_and_within_their_budget(n_steps, fixed, state, record, workers, spare):
    sizes = Sizes(fixed, state, record, workers)
    budget = sizes.of(0, 1) + spare
    plan = make_plan(n_steps, sizes, budget)
    forward, checkpoints, records = simulate(plan)
    assert forward == plan.forward_steps
    assert checkpoints == plan.checkpoints
    assert records == plan.records
    assert plan.n_bytes == sizes.of(checkpoints, records) <= budget
    assert plan.least_bytes == sizes.of(0, 1)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 10, 31, 60])
@pytest.mark.parametrize("checkpoints", range(7))
def test_no_program_of_single_records_is_shorter(n_steps, checkpoints):
    # A record is so large that a second one never fits.
    plan = make_plan(n_steps, Sizes(0, 1, 1000), 1000 + checkpoints)
    assert plan.forward_steps == shortest(n_steps, checkpoints)


def test_more_memory_is_never_slower():
    steps = [make_plan(50, Sizes(100, 3, 25, 2), budget).forward_steps for budget in range(250, 3000, 10)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 50
    assert steps[0] == 50 * 51 // 2


@pytest.mark.parametrize("n_steps", [1, 2, 10, 50, 250])
def test_the_default_budget_refuses_nothing(n_steps):
    huge = Sizes(fixed=10**9, state=10**7, record=10**8, workers=64)
    plan = make_plan(n_steps, huge)
    assert plan.n_bytes > DEFAULT_MAX_BYTES
    assert plan.forward_steps < 2 * n_steps or n_steps == 1
    simulate(plan)
    with pytest.raises(ValueError, match="max_bytes: expected at least"):
        make_plan(n_steps, huge, DEFAULT_MAX_BYTES)


def test_the_default_budget_of_a_backend():
    sizes = Sizes(fixed=600, state=25, record=226, workers=2)
    assert make_plan(10, sizes, default_bytes=100).forward_steps == 10  # what ten steps take, though it is more
    fifty = make_plan(50, sizes, default_bytes=16_000)
    assert fifty.n_bytes <= 16_000
    assert 50 < fifty.forward_steps < 75
    assert make_plan(50, sizes).forward_steps == 50
    # Ten steps of large images are beyond every default: then only no more than twice the steps.
    large = Sizes(fixed=0, state=2**20, record=2**27)
    assert 10 < make_plan(10, large, default_bytes=100).forward_steps < 20


@pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="the cpu backend is not there")
def test_the_default_budget_of_the_cpu_backend(make_autoencoder):
    purifier = Purifier(make_autoencoder(), ChainConfig(n_steps=50), backend="cpu")
    plan = purifier.gradient_plan(torch.empty(256, 1, 28, 28))
    assert plan.n_bytes <= cpu.DEFAULT_THREAD_BYTES * torch.get_num_threads()
    assert 50 <= plan.forward_steps < 100


def test_long_chains_and_no_chain():
    assert simulate(make_plan(5000, Sizes(0, 1, 10), 100))[0] < 10 * 5000
    assert make_plan(0, Sizes(1, 1, 1), 1).numbers() == []


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (10, ValueError, "max_bytes: expected at least 30, which one step of this chain takes, got 10"),
        (0, ValueError, "max_bytes: expected at least 1, got 0"),
        (2.5, TypeError, "max_bytes: expected an int or None, got float 2.5"),
        (True, TypeError, "max_bytes: expected an int or None, got bool"),
    ],
)
def test_budgets_that_do_not_fit(budget, error, message):
    with pytest.raises(error, match=message):
        make_plan(5, Sizes(10, 3, 20), budget)


def gradient(x, r, backend, **options):
    leaf = x.clone().requires_grad_(True)
    out = langevin_chain(leaf, r, A, D, seed=3, backend=backend, clamp=(0.0, 1.0), **options)
    return torch.autograd.grad(out.square().sum(), leaf)[0]


def test_the_gradient_has_the_same_bits_under_every_budget(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(5, 1, 8, 8)
    purifier = Purifier(model, ChainConfig(n_steps=5), backend=backend)
    full = purifier.gradient_plan(x, max_bytes=DEFAULT_MAX_BYTES)
    assert full.forward_steps == 5
    expected = gradient(x, model, backend)
    for budget in (full.least_bytes, (full.least_bytes + full.n_bytes) // 2, full.n_bytes):
        assert torch.equal(gradient(x, model, backend, max_bytes=budget), expected)
    with pytest.raises(ValueError, match="max_bytes: expected at least"):
        gradient(x, model, backend, max_bytes=full.least_bytes - 1)


def test_gradients_of_weights_and_noise_have_the_same_bits_under_every_budget(make_autoencoder, make_images, backend):
    x, noise = make_images(3, 1, 8, 8), make_images(5 * 3, 1, 8, 8).reshape(5, 3, 1, 8, 8)
    purifier = Purifier(make_autoencoder(), ChainConfig(n_steps=5), backend="torch")
    results = []
    for budget in (None, purifier.gradient_plan(x).least_bytes):
        model, z = make_autoencoder(), noise.clone().requires_grad_(True)
        out = langevin_chain(x, model, A, D, noise=z, backend=backend, clamp=(0.2, 0.8), max_bytes=budget)
        out.square().sum().backward()
        results.append([z.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert float(one.abs().sum()) > 0
        assert torch.equal(one, other)


def test_a_purifier_carries_its_budget(make_autoencoder, make_images):
    purifier = Purifier(make_autoencoder(), ChainConfig(n_steps=5), max_bytes=123)
    with pytest.raises(ValueError, match="max_bytes: expected at least"):
        purifier.gradient_plan(make_images(1, 1, 8, 8))
    leaf = make_images(1, 1, 8, 8).requires_grad_(True)
    out = purifier(leaf, seed=0)
    with pytest.raises(ValueError, match="max_bytes: expected at least"):
        out.sum().backward()
    with pytest.raises(ValueError, match="max_bytes"):
        Purifier(make_autoencoder(), ChainConfig(n_steps=5), max_bytes=-1)
    text = str(Purifier(make_autoencoder(), ChainConfig(n_steps=5)).gradient_plan(make_images(1, 1, 8, 8)))
    assert "5 forward steps (1.00 per step)" in text
    assert "MiB" in text
    with pytest.raises(TypeError, match="gradient_plan: expected a Table 8 Autoencoder, got Identity"):
        Purifier(torch.nn.Identity(), ChainConfig(n_steps=5)).gradient_plan(make_images(1, 1, 8, 8))


class Counted(torch.nn.Module):
    """r(x) of the user's own that counts its calls."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model.forward(x)


@pytest.mark.parametrize("factor", [1.0, 1.5, 3.0, 40.0])
def test_user_modules_are_checkpointed_through_torch(make_autoencoder, make_images, backend, factor):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(4, 1, 8, 8)
    plain = Counted(model)
    expected = gradient(x, plain, backend)
    assert plain.calls == 5
    with pytest.raises(ValueError, match="max_bytes: expected at least") as failure:
        gradient(x, model.forward, backend, max_bytes=1)
    least = int(str(failure.value).split("at least ")[1].split(",")[0])
    module = Counted(model)
    found = gradient(x, module, backend, max_bytes=int(factor * least))
    assert torch.equal(found, expected)
    # One call measures; under a small budget steps run twice or more, under a large one once.
    assert module.calls == 6 if factor == 40.0 else module.calls > 6
