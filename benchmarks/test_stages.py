"""Microbenchmarks of the native operations: ``pytest benchmarks`` with pytest-benchmark, from ``fastmalade[bench]``.

Each calls the backend directly, so that a change to a kernel shows by itself. What a user's call costs, and the
comparison with other libraries, is ``fastmalade bench``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps
from fastmalade.bench.task import final_bounds, make_images

pytest.importorskip("pytest_benchmark")


def _per_image(benchmark, task):
    benchmark.extra_info["images"] = task.batch
    benchmark.extra_info["isa"] = cpu.isa_in_use()


def _chain(task):
    """Images, weights, steps and noise of the task's chain."""
    steps = Steps(tuple(task.step_sizes), tuple(task.noise_scales), *map(tuple, final_bounds(task.n_steps)))
    return torch.from_numpy(make_images(task)), task.weights, steps, NoiseSource(1, torch.arange(task.batch))


def test_langevin_chain(benchmark, task, form):
    x, *chain = _chain(task)
    _per_image(benchmark, task)
    assert benchmark(cpu.langevin_chain, x, *chain, form=form).shape == x.shape


def test_chain_gradient(benchmark, task, form):
    """The way back with nothing kept: the chain run again and recorded, then reversed."""
    x, *chain = _chain(task)
    _per_image(benchmark, task)
    assert benchmark(cpu.chain_gradient, x, x, *chain, form=form).shape == x.shape


def test_recorded_chain(benchmark, task, form):
    """The chain with its activations kept, in memory that is fresh at each call where it is large."""
    x, *chain = _chain(task)
    _per_image(benchmark, task)
    assert benchmark(cpu.recorded_chain, x, *chain, form=form)[0].shape == x.shape


def test_recorded_gradient(benchmark, task, form):
    """The way back from kept activations."""
    x, *chain = _chain(task)
    _, kept = cpu.recorded_chain(x, *chain, form=form)
    _per_image(benchmark, task)
    assert benchmark(kept.gradient, x).shape == x.shape


def test_autoencoder_forward(benchmark, task, form):
    x = torch.from_numpy(make_images(task))
    _per_image(benchmark, task)
    assert benchmark(cpu.autoencoder_forward, x, task.weights, form=form).shape == x.shape


def test_standard_normal(benchmark, task):
    ids = torch.arange(task.batch)
    _per_image(benchmark, task)
    z = benchmark(cpu.standard_normal, 1, ids, 0, int(np.prod(task.shape)))
    assert z.shape == (task.batch, 784)
