"""Signals during native calls: handlers run while the kernels do, and one that raises ends the call."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import fastmalade
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps

pytestmark = pytest.mark.usefixtures("native")

STEPS = Steps((0.1,) * 120, (0.1,) * 120, (0.0,) * 120, (1.0,) * 120)
NOISE = NoiseSource(5)


class RungError(Exception):
    pass


def ring(_number, _frame):
    raise RungError


@contextmanager
def alarm(after: float, handler: Callable):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def long_calls() -> dict[str, Callable[[], torch.Tensor]]:
    """One of each kind that computes for a second or so on one core."""
    weights = fastmalade.Autoencoder(generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    ten, generator = weights.weights(), torch.Generator().manual_seed(1)
    x = torch.rand(512, 1, 28, 28, generator=generator)
    many = torch.rand(20_000, 1, 28, 28, generator=generator)
    leaf = x.clone().requires_grad_(True)
    settings = {"step_sizes": STEPS.step_sizes, "noise_scales": STEPS.noise_scales, "seed": 5}

    def back() -> torch.Tensor:
        return torch.autograd.grad(fastmalade.langevin_chain(leaf[:256], weights, **settings), leaf, leaf[:256])[0]

    return {
        "chain": lambda: cpu.langevin_chain(x, ten, STEPS, NOISE),
        "gradient": lambda: cpu.chain_gradient(x[:256], x[:256], ten, STEPS, NOISE),
        "autograd": back,
        "forward": lambda: cpu.autoencoder_forward(many, ten),
        "product": lambda: cpu.autoencoder_vjp(many, many, ten),
        "noise": lambda: cpu.standard_normal(3, torch.arange(60_000), 0, 784),
        "trajectory": lambda: cpu.langevin_chain(x, ten, STEPS, NOISE, trajectory=True),
    }


@pytest.mark.parametrize("name", long_calls())
def test_a_handler_that_raises_ends_the_call(name):
    call = long_calls()[name]
    started = time.perf_counter()
    expected = call()
    whole = time.perf_counter() - started
    started = time.perf_counter()
    with alarm(whole / 10, ring), pytest.raises(RungError):
        call()
    assert time.perf_counter() - started < max(0.5 * whole, 0.2)
    assert torch.equal(call(), expected)  # the pool and its memory are as before


def test_ctrl_c_during_purify():
    purifier = fastmalade.Purifier.from_pretrained("malade-mnist")
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = purifier.purify(x, seed=1)
    with alarm(0.1, lambda *_: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        purifier.purify(x, seed=1, n_steps=4000)
    assert torch.equal(purifier.purify(x, seed=1), expected)


@pytest.mark.parametrize("name", ["chain", "gradient"])
def test_a_handler_that_returns_changes_nothing(name):
    call, runs = long_calls()[name], []
    purifier = fastmalade.Purifier.from_pretrained("malade-mnist")
    large = torch.rand(9, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    alone = purifier.purify(large, seed=1)
    expected = call()

    def handler(_number, _frame):
        # Takes more memory than the call that it interrupts, on the same thread.
        runs.append(torch.equal(purifier.purify(large, seed=1), alone))

    with alarm(0.05, handler):
        found = call()
    assert runs == [True]
    assert torch.equal(found, expected)


def test_calls_of_other_threads_leave_signals_alone():
    call = long_calls()["chain"]
    expected = call()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(call)
        with alarm(0.05, ring), pytest.raises(RungError):
            found.result()
        assert torch.equal(found.result(), expected)
