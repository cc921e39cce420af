"""The fused update of one step, the range check and the multiply-add ceiling of the native backend."""

from __future__ import annotations

import importlib
import math

import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Step, Steps

SHAPES = [(1, 1, 1, 1), (7, 1, 28, 28), (33, 3, 5, 7), (1, 3, 224, 224), (2, 1, 91, 91)]
A, D, SEED, STEP = 0.3, 0.2, 2**63 + 5, 4


def operands(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    ids = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=generator)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator), ids


def update(x, r, ids, *, a=A, d=D, low=-math.inf, high=math.inf, seed=SEED, step=STEP, noise=None) -> torch.Tensor:
    return cpu.langevin_update(x, r, Step(step, a, d, low, high), NoiseSource(seed, ids, noise))


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.2, 0.7), (0.2, math.inf)])
@pytest.mark.parametrize("shape", SHAPES)
def test_within_the_tolerance_rule(isa: str, shape, bounds) -> None:
    x, r, ids = operands(shape)
    elements = math.prod(shape[1:])
    z = torch.from_numpy(reference64.normals(SEED, ids.tolist(), STEP, elements)).reshape(shape)
    exact = (x.double() + A * (r.double() - x.double()) + D * z).clamp(*bounds)
    single = (x + A * (r - x) + D * z.float()).clamp(*bounds)
    low, high = bounds
    reference64.assert_within_rule(update(x, r, ids, low=low, high=high), single, exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_is_that_of_standard_normal_to_the_bit(isa: str, shape) -> None:
    x, r, ids = operands(shape)
    z = cpu.standard_normal(SEED, ids, STEP, math.prod(shape[1:])).reshape(shape)
    drawn = update(torch.zeros(shape), torch.zeros(shape), ids, a=0.0, d=1.0)
    assert torch.equal(drawn, z)
    assert torch.equal(update(x, r, ids), update(x, r, ids, noise=z))
    assert torch.equal(update(x, r, None), update(x, r, torch.arange(shape[0])))


def test_bits_do_not_depend_on_batch_or_threads(isa: str) -> None:
    for shape in [(40, 1, 28, 28), (3, 3, 100, 101)]:
        x, r, ids = operands(shape)
        torch.set_num_threads(1)
        whole = update(x, r, ids, low=0.1, high=0.9)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for first, last in [(0, shape[0]), (0, 1), (1, 3), (shape[0] - 1, shape[0])]:
                part = slice(first, last)
                assert torch.equal(update(x[part], r[part], ids[part], low=0.1, high=0.9), whole[part])


def test_it_is_the_last_stage_of_the_chain(isa: str) -> None:
    x, _, ids = operands((5, 2, 8, 12))
    weights = reference64.random_weights(2, 5, 6)
    r = cpu.autoencoder_forward(x, weights)
    one = cpu.langevin_chain(x, weights, Steps((A,), (D,), (0.2,), (0.7,)), NoiseSource(SEED, ids))
    assert torch.equal(update(x, r, ids, low=0.2, high=0.7, step=0), one)


def test_zero_noise_reads_no_noise_and_nan_stays(isa: str) -> None:
    x, r, ids = operands((3, 1, 5, 7))
    unread = torch.full_like(x, math.nan)
    still = update(x, r, ids, d=0.0)
    assert torch.equal(still, update(x, r, ids, d=0.0, seed=1, noise=unread))
    assert torch.equal(update(x, r, ids, a=0.0, d=0.0), x)
    x[1, 0, 2, 3] = math.nan
    result = update(x, r, ids, low=0.0, high=1.0)
    assert torch.isnan(result).sum() == 1
    assert torch.isnan(result[1, 0, 2, 3])


def test_layouts_and_empty_batches(native) -> None:
    x, r, ids = operands((4, 3, 6, 10))
    expected = update(x, r, ids)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(update(strided, r.flip(0).flip(0), ids), expected)
    assert update(strided, r, ids).is_contiguous()
    assert update(x[:0], r[:0], ids[:0]).shape == (0, 3, 6, 10)
    negated = torch._neg_view(-x)
    assert torch.equal(update(negated, r, ids), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": torch.zeros(2, 1, 4, 5)}, r"reconstruction: expected .*\(2, 1, 4, 4\), got .*\(2, 1, 4, 5\)"),
        ({"r": torch.zeros(2, 1, 4, 4).double()}, r"reconstruction: expected torch\.float32 .*float64"),
        ({"noise": torch.zeros(1, 1, 4, 4)}, "noise: expected"),
        ({"ids": torch.arange(3)}, r"sample_ids: expected .*\(2\), got .*\(3,\)"),
        ({"a": math.nan}, "step_size: expected finite float32 values, got nan"),
        ({"d": 1e300}, "noise_scale: expected finite float32 values, got inf"),
        ({"low": 1.0, "high": 0.0}, "clamp bounds: expected low <= high"),
        ({"high": math.nan}, "clamp bounds: expected low <= high"),
        ({"step": -1}, "step: expected 0 to 4294967295, got -1"),
        ({"seed": 2**64}, r"seed: expected 0 to 2\*\*64 - 1"),
    ],
)
def test_arguments_that_do_not_fit(native, changed: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 1, 4, 4), "r": torch.zeros(2, 1, 4, 4), "ids": torch.arange(2), **changed}
    with pytest.raises(ValueError, match=message):
        update(**arguments)


@pytest.mark.parametrize("count", [0, 1, 7, 1023, 1024, 1025, 100_000])
def test_first_outside(native, count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert cpu.first_outside(values, 0.0, 1.0) == -1
    for at in {0, count // 2, count - 1} if count else ():
        for odd in (-0.1, 1.1, math.nan, math.inf, -math.inf):
            wrong = values.clone()
            wrong[at] = odd
            wrong[-1] = wrong[-1] if at == count - 1 else 7.0  # not the first one
            assert cpu.first_outside(wrong, 0.0, 1.0) == at
    for unreadable in (torch.zeros(4, 4).t()[:, 1:], torch.zeros(4).double(), torch._neg_view(values)):
        assert cpu.first_outside(unreadable, 0.0, 1.0) is None


def test_multiply_add_ceiling(isa: str) -> None:
    extension = importlib.import_module("fastmalade._cpu")
    rate = extension.fma_ceiling(isa, 0.01)
    # Any processor of these instruction sets, and none there is.
    assert 1e8 < rate < 1e13
    with pytest.raises(ValueError, match="seconds: expected more than 0 and at most 60, got 0"):
        extension.fma_ceiling(isa, 0.0)
