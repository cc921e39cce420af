"""One thread, and the work that the microbenchmarks share."""

from __future__ import annotations

import pytest
import torch

from fastmalade import backends
from fastmalade.bench.task import Task, make_task

BATCHES = (1, 16, 256)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _native():
    reason = backends.available()["cpu"]
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=BATCHES, ids=lambda batch: f"B{batch}")
def task(request: pytest.FixtureRequest) -> Task:
    """The chain of ten steps on 1x28x28."""
    return make_task((1, 28, 28), request.param, 10)


@pytest.fixture(params=("throughput", "quad", "latency"))
def form(request: pytest.FixtureRequest) -> str:
    """The two forms of the kernels."""
    return request.param
