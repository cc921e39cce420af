"""Microbenchmark of the chain around a user's module: what update and noise cost beside its forward pass."""

from __future__ import annotations

import pytest
import torch

import fastmalade
from fastmalade.bench.task import make_images

pytest.importorskip("pytest_benchmark")


class _Halved(torch.nn.Module):
    """The cheapest r(x) there is: what remains is the chain's own."""

    in_channels = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


def test_chain_of_a_user_module(benchmark, task):
    x = torch.from_numpy(make_images(task))
    benchmark.extra_info["images"] = task.batch
    module = _Halved()
    with torch.no_grad():
        result = benchmark(
            fastmalade.langevin_chain, x, module, task.step_sizes, task.noise_scales, seed=1, clamp=(0.0, 1.0)
        )
    assert result.shape == x.shape
    assert float(result.min()) >= 0.0
