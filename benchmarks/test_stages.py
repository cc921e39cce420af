"""Microbenchmarks of the native operations: ``pytest benchmarks`` with pytest-benchmark, from ``fastmalade[bench]``.

Each calls the backend directly, so that a change to a kernel shows by itself. What a user's call costs, and the
comparison with other libraries, is ``fastmalade bench``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.bench.task import final_bounds, make_images

pytest.importorskip("pytest_benchmark")


def _per_image(benchmark, task):
    benchmark.extra_info["images"] = task.batch
    benchmark.extra_info["isa"] = cpu.isa_in_use()


def test_langevin_chain(benchmark, task, form):
    x, ids = torch.from_numpy(make_images(task)), torch.arange(task.batch)
    lows, highs = final_bounds(task.n_steps)
    _per_image(benchmark, task)
    result = benchmark(
        cpu.langevin_chain, x, task.weights, task.step_sizes, task.noise_scales, lows, highs,
        seed=1, sample_ids=ids, form=form,
    )  # fmt: skip
    assert result.shape == x.shape


def _gradient_call(task):
    x = torch.from_numpy(make_images(task))
    lows, highs = final_bounds(task.n_steps)
    settings = (x, task.weights, task.step_sizes, task.noise_scales, lows, highs)
    return x, settings, {"seed": 1, "sample_ids": torch.arange(task.batch)}


def test_chain_gradient(benchmark, task, form):
    """The way back with nothing kept: the chain run again and recorded, then reversed."""
    x, settings, options = _gradient_call(task)
    _per_image(benchmark, task)
    assert benchmark(cpu.chain_gradient, x, *settings, **options, form=form).shape == x.shape


def test_recorded_chain(benchmark, task, form):
    """The chain with its activations kept, in memory that is fresh at each call where it is large."""
    x, settings, options = _gradient_call(task)
    _per_image(benchmark, task)
    assert benchmark(cpu.recorded_chain, *settings, **options, form=form)[0].shape == x.shape


def test_recorded_gradient(benchmark, task, form):
    """The way back from kept activations."""
    x, settings, options = _gradient_call(task)
    _, kept = cpu.recorded_chain(*settings, **options, form=form)
    _per_image(benchmark, task)
    assert benchmark(kept.gradient, x, task.weights).shape == x.shape


def test_autoencoder_forward(benchmark, task, form):
    x = torch.from_numpy(make_images(task))
    _per_image(benchmark, task)
    assert benchmark(cpu.autoencoder_forward, x, task.weights, form=form).shape == x.shape


def test_standard_normal(benchmark, task):
    ids = torch.arange(task.batch)
    _per_image(benchmark, task)
    z = benchmark(cpu.standard_normal, 1, ids, 0, int(np.prod(task.shape)))
    assert z.shape == (task.batch, 784)
