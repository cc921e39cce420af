"""The Triton backend on a GPU; skipped where there is none."""

from __future__ import annotations

import json
import math

import pytest
import reference64
import torch
from torch import Tensor

from fastmalade.backends.triton import calls as backend
from fastmalade.backends.triton import tiles as triton_tiles
from fastmalade.backends.values import NoiseSource, Steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
INFINITY = math.inf
SEED = 2**63 + 7
CASES = [
    (1, 28, 28, 10, 25, 33),
    (3, 32, 32, 10, 25, 5),
    (1, 4, 4, 10, 25, 3),
    (2, 12, 20, 7, 35, 2),
    (5, 8, 8, 1, 1, 2),
]


def problem(case) -> tuple[Tensor, list[Tensor], Tensor]:
    channels, height, width, hidden1, hidden2, batch = case
    x = torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(batch + width))
    return x, reference64.random_weights(channels, hidden1, hidden2, seed=3), torch.arange(batch) * 10**12 - 1


def on_gpu(function, *arguments, ids: Tensor, **options):
    return function(*arguments, NoiseSource(SEED, ids.cuda()), **options).cpu()


def steps_of(n: int, low: float, high: float) -> Steps:
    return Steps(tuple(0.5 / (t + 1) for t in range(n)), (0.1,) * n, (low,) * n, (high,) * n)


@pytest.mark.parametrize("bounds", [(-INFINITY, INFINITY), (0.0, 0.8)])
@pytest.mark.parametrize("n_steps", [1, 10])
@pytest.mark.parametrize("case", CASES)
def test_states_and_gradient_within_the_tolerance_rule(case, n_steps: int, bounds) -> None:
    x, weights, ids = problem(case)
    steps = steps_of(n_steps, *bounds)
    elements = math.prod(x.shape[1:])
    z = [torch.from_numpy(reference64.normals(SEED, ids.tolist(), t, elements)) for t in range(n_steps)]
    noise = torch.stack(z).reshape(n_steps, *x.shape)
    cotangent = x.flip(-1) - 0.5
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        states = reference64.chain(leaf, weights, *steps[:2], noise.to(dtype), *bounds)
        found.append((states.detach(), torch.autograd.grad(states[-1], leaf, cotangent.to(dtype))[0]))
    (single, single_gradient), (exact, exact_gradient) = found
    gpu = (x.cuda(), [w.cuda() for w in weights])
    result = on_gpu(backend.langevin_chain, *gpu, steps, ids=ids, trajectory=True)
    reference64.assert_within_rule(result, single, exact)
    gradient = on_gpu(backend.chain_gradient, cotangent.cuda(), *gpu, steps, ids=ids)
    reference64.assert_within_rule(gradient, single_gradient, exact_gradient)


@pytest.mark.parametrize("case", CASES[:2])
def test_bits_do_not_depend_on_batch_position_or_tiles(case, tmp_path, monkeypatch) -> None:
    x, weights, ids = problem((*case[:5], 33))
    steps = steps_of(3, 0.0, 1.0)
    gpu_weights = [w.cuda() for w in weights]

    def both(part: slice) -> tuple[Tensor, Tensor]:
        images = x[part].cuda()
        value = on_gpu(backend.langevin_chain, images, gpu_weights, steps, ids=ids[part])
        return value, on_gpu(backend.chain_gradient, images, images, gpu_weights, steps, ids=ids[part])

    whole = both(slice(None))
    for part in (slice(0, 1), slice(16, 17), slice(32, 33), slice(3, 20)):
        for got, expected in zip(both(part), whole, strict=True):
            assert torch.equal(got, expected[part])
    for block_m, warps in ((32, 2), (128, 8)):
        path = tmp_path / f"{block_m}.json"
        table = {stage: {"block_m": block_m, "num_warps": warps} for stage in triton_tiles.DEFAULTS}
        path.write_text(json.dumps({"*": table}))
        monkeypatch.setenv(triton_tiles.VARIABLE, str(path))
        for got, expected in zip(both(slice(None)), whole, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_reduced_precision_errs_by_no_more_than_it_says(precision: str) -> None:
    # TF32 keeps 10 bits of an operand; three products of split operands keep about as many as float32.
    x, weights, ids = problem(CASES[0])
    gpu = (x.cuda(), [w.cuda() for w in weights], steps_of(10, 0.0, 1.0))
    exact = on_gpu(backend.langevin_chain, *gpu, ids=ids)
    reduced = on_gpu(backend.langevin_chain, *gpu, ids=ids, precision=precision)
    assert float((reduced - exact).abs().max()) < (2e-2 if precision == "tf32" else 2e-5)


def test_words_and_normals() -> None:
    ids = torch.tensor([0, -1, 2**40 + 3])
    for step in (0, 1, 16, 2**32 - 1):
        words = backend.philox_words(SEED, ids.cuda(), step, 1000).cpu()
        expected = torch.from_numpy(reference64.philox_words(SEED, ids.tolist(), step, 250).astype("int64"))
        assert torch.equal(words, expected)
    z = backend.standard_normal(SEED, ids.cuda(), 3, 100_003).cpu()
    exact = torch.from_numpy(reference64.normals(SEED, ids.tolist(), 3, 100_003))
    reference64.assert_within_rule(z, exact.float(), exact)


def test_on_a_stream_of_the_callers() -> None:
    x, weights, ids = problem(CASES[0])
    gpu = (x.cuda(), [w.cuda() for w in weights], steps_of(3, 0.0, 1.0))
    expected = on_gpu(backend.langevin_chain, *gpu, ids=ids)
    numbers = ids.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = backend.langevin_chain(*gpu, NoiseSource(SEED, numbers))
    side.synchronize()
    assert torch.equal(result.cpu(), expected)
