"""Buckets, buffers, order of work and memory of the executor, on the stand-in for the capture layer."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from fastmalade import reference
from fastmalade.executor import GraphExecutor


def add_noise(images: Tensor, seed_bits: Tensor, ids: Tensor) -> Tensor:
    z = reference.standard_normal(seed_bits, ids, 0, images.shape[1:])
    return images.float() + z


def expected(images: Tensor, seed: int, ids) -> Tensor:
    return images.float() + reference.standard_normal(seed, torch.as_tensor(ids), 0, images.shape[1:])


@pytest.fixture
def executor(capture) -> GraphExecutor:
    return GraphExecutor(add_noise, buckets=(1, 4, 8), capture=capture)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 8, 9, 17])
def test_any_batch_is_what_the_function_gives(executor, batch: int) -> None:
    images = torch.rand(batch, 2, 3)
    assert torch.equal(executor(images, seed=2**64 - 5), expected(images, 2**64 - 5, range(batch)))
    ids = torch.arange(batch) * 7 - 3
    assert torch.equal(executor(images, seed=6, sample_ids=ids.view(torch.uint64)), expected(images, 6, ids))
    executor(torch.full((batch, 2, 3), float("nan")), seed=1)
    # What a larger call left in the buffers is not seen by a smaller one.
    assert torch.equal(executor(images, seed=6, sample_ids=ids.view(torch.uint64)), expected(images, 6, ids))


def test_one_capture_per_bucket_shape_and_dtype(executor, capture) -> None:
    for batch in (1, 2, 3, 4, 5, 8, 16, 18):
        executor(torch.rand(batch, 2, 3))
    assert capture.calls.count("capture") == 3
    assert [row.bucket for row in executor.report()] == [1, 8, 4]  # least recently used first
    executor(torch.rand(1, 5))
    executor(torch.rand(1, 2, 3, dtype=torch.float64))
    assert capture.calls.count("capture") == 5
    assert sum(row.replays for row in executor.report()) == capture.calls.count("replay") == 13


def test_noise_is_fresh_at_every_replay(executor, capture) -> None:
    images = torch.zeros(2, 50)
    first, second = executor(images), executor(images)
    assert not torch.equal(first, second)
    assert capture.calls.count("capture") == 1


def test_results_are_not_the_buffers(executor) -> None:
    images = torch.rand(2, 3)
    first = executor(images, seed=1)
    kept = first.clone()
    executor(images, seed=2)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(executor(images, seed=1), kept)


def test_order_on_the_stream(executor, capture) -> None:
    executor(torch.rand(1, 3))
    executor(torch.rand(1, 3))
    # Every use waits for the one before it, and marks its own end after the result is copied and the buffers are held.
    assert capture.calls == ["capture", "mark", "wait 2", "replay", "hold", "mark", "wait 6", "replay", "hold", "mark"]


def test_memory_is_bounded_and_reported(capture) -> None:
    executor = GraphExecutor(add_noise, buckets=(1, 2, 4), max_bytes=2500, capture=capture)
    for batch in (1, 2, 4, 1):
        executor(torch.rand(batch, 10))
        assert sum(row.bytes for row in executor.report()) <= 2500
    assert [row.bucket for row in executor.report()] == [4, 1]
    # Images, seed and ids, and what the capture layer counts.
    assert executor.report()[0].bytes == 4 * 10 * 4 + 8 + 4 * 8 + 1000
    tight = GraphExecutor(add_noise, buckets=(1, 2), max_bytes=0, capture=capture)
    for batch in (1, 2, 1):
        tight(torch.rand(batch, 10))
        assert len(tight.report()) == 1
    tight.clear()
    assert tight.report() == []


def test_a_new_version_is_captured_anew(capture) -> None:
    version = ["a"]
    executor = GraphExecutor(add_noise, version=lambda: version[0], buckets=(1, 2), capture=capture)
    executor(torch.rand(1, 3))
    executor(torch.rand(2, 3))
    version[0] = "b"
    executor(torch.rand(1, 3))
    assert capture.calls.count("capture") == 3
    assert [row.bucket for row in executor.report()] == [1]  # nothing of the old version is kept


def test_many_threads(capture) -> None:
    executor = GraphExecutor(add_noise, buckets=(2, 4), max_bytes=1100, capture=capture)
    inputs = [torch.rand(1 + n % 4, 30) for n in range(8)]
    wrong: list[int] = []

    def call(n: int) -> None:
        for seed in range(20):
            if not torch.equal(executor(inputs[n], seed=seed), expected(inputs[n], seed, range(len(inputs[n])))):
                wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(executor.report()) == 1


def test_an_empty_batch_and_no_gradient(executor, capture) -> None:
    assert executor(torch.rand(0, 4)).shape == (0, 4)
    assert capture.calls == []
    assert not executor(torch.rand(1, 4).requires_grad_()).requires_grad


def test_inside_and_outside_of_inference_mode(executor) -> None:
    images = torch.rand(2, 4)
    with torch.inference_mode():
        inside = executor(images.clone(), seed=3)
    assert torch.equal(inside, expected(images, 3, range(2)))
    assert torch.equal(executor(images, seed=3), inside)


def test_arguments_that_do_not_fit(executor, capture) -> None:
    with pytest.raises(TypeError, match="images: expected a torch tensor, got list"):
        executor([1.0])
    with pytest.raises(ValueError, match="images: expected a tensor on a cpu device, got meta"):
        executor(torch.empty(1, 2, device="meta"))
    with pytest.raises(ValueError, match=r"sample_ids: expected shape \(2,\), got \(3,\)"):
        executor(torch.rand(2, 2), sample_ids=range(3))
    with pytest.raises(ValueError, match=r"seed: expected 0 <= seed < 2\*\*64"):
        executor(torch.rand(2, 2), seed=-1)
    for buckets in ((), (0, 1), (2, 2), (4, 2)):
        with pytest.raises(ValueError, match="buckets: expected ascending positive batch sizes"):
            GraphExecutor(add_noise, buckets=buckets)
    with pytest.raises(ValueError, match="max_bytes: expected at least 0, got -1"):
        GraphExecutor(add_noise, max_bytes=-1)
    with pytest.raises(ValueError, match="images: expected a tensor on a cuda device, got cpu"):
        GraphExecutor(add_noise)(torch.rand(1, 2))
