"""The cache of packed models: found by content alone, bounded, shared by threads."""

from __future__ import annotations

import importlib
import threading
from types import ModuleType

import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps

Weights = list[torch.Tensor]


@pytest.fixture
def extension(native) -> ModuleType:
    return importlib.import_module("fastmalade._cpu")


def chain(weights: Weights, batch: int = 3, side: int = 8) -> torch.Tensor:
    x = torch.rand(batch, weights[0].shape[1], side, side, generator=torch.Generator().manual_seed(1))
    return cpu.langevin_chain(x, weights, Steps((0.2, 0.1), (0.1, 0.1), (0.0,) * 2, (1.0,) * 2), NoiseSource(3))


def counts(extension: ModuleType, weights: Weights, **options) -> tuple[int, int]:
    """(hits, misses) of one call."""
    before = extension.packed_cache_info()
    chain(weights, **options)
    after = extension.packed_cache_info()
    return after["hits"] - before["hits"], after["misses"] - before["misses"]


def model(seed: int) -> Weights:
    return reference64.random_weights(1, 3, 4, seed=seed)


def test_packed_once_whatever_the_batch_the_size_and_the_address(extension) -> None:
    weights = model(seed=100)
    assert counts(extension, weights) == (0, 1)
    assert counts(extension, weights, batch=40) == (1, 0)
    assert counts(extension, weights, side=12) == (1, 0)
    assert counts(extension, [w.clone() for w in weights]) == (1, 0)


def test_a_hit_gives_what_a_miss_gives(isa: str) -> None:
    for batch in (1, 40):
        for side in (8, 12):
            weights = reference64.random_weights(2, 5, 6, seed=200 + batch)
            first = chain(weights, batch=batch, side=side)
            chain(weights, batch=batch, side=4)  # the entry may be filled through another image size
            assert torch.equal(chain(weights, batch=batch, side=side), first)


@pytest.mark.parametrize("array", range(10))
def test_every_change_in_place_is_seen(extension, array: int) -> None:
    weights = model(seed=300 + array)
    before = chain(weights)
    version = weights[array]._version
    # Through an alias that leaves no trace on the tensor: the last element alone, then all.
    weights[array].data.view(-1)[-1] += 0.5
    assert counts(extension, weights) == (0, 1)
    weights[array].data += 0.05
    assert weights[array]._version == version
    assert counts(extension, weights) == (0, 1)
    changed = chain(weights)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, chain([w.clone() for w in weights]))


def test_numpy_views_of_the_weights_are_seen(extension) -> None:
    weights = model(seed=400)
    before = chain(weights)
    weights[0].numpy()[:] *= 1.5
    assert counts(extension, weights) == (0, 1)
    assert not torch.equal(chain(weights), before)


def test_the_least_recently_used_model_leaves(extension) -> None:
    most = extension.packed_cache_info()["most_entries"]
    models = [model(seed=500 + n) for n in range(most + 1)]
    for weights in models[:most]:
        assert counts(extension, weights) == (0, 1)
    assert counts(extension, models[0]) == (1, 0)  # now the most recent
    assert counts(extension, models[most]) == (0, 1)
    info = extension.packed_cache_info()
    assert info["entries"] == most
    assert counts(extension, models[0]) == (1, 0)
    assert counts(extension, models[1]) == (0, 1)


def test_a_large_model_is_not_kept(extension) -> None:
    chain(model(seed=600))
    before = extension.packed_cache_info()
    weights = reference64.random_weights(1, 450, 450, seed=601)
    first = chain(weights, batch=1, side=4)
    after = extension.packed_cache_info()
    assert (after["entries"], after["bytes"]) == (before["entries"], before["bytes"])
    assert after["bytes"] <= after["most_entries"] * after["most_entry_bytes"]
    assert counts(extension, weights, batch=1, side=4) == (0, 1)
    assert torch.equal(chain(weights, batch=1, side=4), first)


def test_shapes_of_different_transforms_do_not_share_a_model() -> None:
    weights = reference64.random_weights(1, 10, 25, seed=602)
    doubled = [w.double() for w in weights]
    for side in (8, 28, 32, 40, 28, 8):
        x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(side))
        expected = reference64.forward(x.double(), doubled)
        assert (cpu.autoencoder_forward(x, weights).double() - expected).abs().max() < 1e-5


def test_threads_share_and_evict_at_the_same_time(extension) -> None:
    models = [model(seed=700 + n) for n in range(12)]
    expected = [chain(weights) for weights in models]
    wrong: list[int] = []

    def call(first: int) -> None:
        for n in range(60):
            at = (first * 5 + n) % len(models)
            if not torch.equal(chain(models[at], batch=3), expected[at]):
                wrong.append(at)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []
    assert extension.packed_cache_info()["entries"] <= extension.packed_cache_info()["most_entries"]
