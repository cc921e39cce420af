"""The normals: their distribution, what they depend on, and the checks of their arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_defenses import small_defense
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmalade
from fastmalade import reference
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed


def test_box_muller_by_definition():
    ids = torch.tensor([3, -7])
    words = reference.philox_words(2**63 + 5, ids, 11, 9).tolist()
    normals = reference.standard_normal(2**63 + 5, ids, 11, (9,), dtype=torch.float64)
    for row, values in zip(words, normals.tolist(), strict=True):
        u = [((w >> 9) + 0.5) / 2**23 for w in row]
        for k, value in enumerate(values):
            pair = u[k // 2 * 2 : k // 2 * 2 + 2]
            turn = math.sin if k % 2 else math.cos
            expected = math.sqrt(-2 * math.log(pair[0])) * turn(2 * math.pi * pair[1])
            assert value == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_moments(backend):
    n_samples, shape = 512, (1, 28, 28)
    z = fastmalade.standard_normal(12345, range(n_samples), 0, shape, backend=backend).double().flatten()
    n = z.numel()
    # Standard errors of the sample moments of N(0, 1): 1/n, 2/n, 15/n and 96/n are their variances.
    assert abs(z.mean()) < 5 * math.sqrt(1 / n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)


def test_samples_steps_seeds_and_neighbours_are_uncorrelated(backend):
    shape = (1, 64, 64)

    def draw(seed: int, sample: int, step: int) -> torch.Tensor:
        return fastmalade.standard_normal(seed, [sample], step, shape, backend=backend).double().flatten()

    base = draw(1, 1, 1)
    others = [draw(2, 1, 1), draw(1, 2, 1), draw(1, 1, 2), draw(1 + 2**32, 1, 1), draw(1, 1 + 2**32, 1)]
    others += [base.roll(k) for k in (1, 2, 3, 4)]
    for other in others:
        assert abs((base * other).mean()) < 5 / math.sqrt(base.numel())


def test_noise_does_not_depend_on_the_batch(backend):
    ids = torch.tensor([5, 0, 2**40, -1, 17, 3, 9]).view(torch.uint64)
    batch = fastmalade.standard_normal(7, ids, 2, (3, 5, 7), backend=backend)
    alone = torch.cat([fastmalade.standard_normal(7, ids[k : k + 1], 2, (3, 5, 7), backend=backend) for k in range(7)])
    assert torch.equal(batch, alone)
    prefix = fastmalade.standard_normal(7, ids, 2, (50,), backend=backend)
    assert torch.equal(prefix, batch.flatten(1)[:, :50])


def test_float32_is_the_rounded_float64():
    ids = torch.arange(17)
    exact = reference.standard_normal(9, ids, 4, (1, 15, 16), dtype=torch.float64)
    assert torch.equal(reference.standard_normal(9, ids, 4, (1, 15, 16)), exact.to(torch.float32))


def test_backends_agree_to_a_few_units_in_the_last_place(backend):
    ids = range(64)
    exact = fastmalade.standard_normal(3, ids, 1, (1, 28, 28), backend="torch").double()
    got = fastmalade.standard_normal(3, ids, 1, (1, 28, 28), backend=backend).double()
    assert got.shape == exact.shape
    # 8 units of float32 at max(|z|, 1): near zero crossings of sin and cos the error is absolute.
    assert bool(((got - exact).abs() <= 8 * 2.0**-24 * exact.abs().clamp_min(1.0)).all())


def test_global_generator_is_neither_read_nor_advanced(backend):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = fastmalade.standard_normal(1, [0], 0, (4,), backend=backend)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(fastmalade.standard_normal(1, [0], 0, (4,), backend=backend), first)


def test_fresh_seeds_are_64_bit_and_differ():
    seeds = [fresh_seed() for _ in range(64)]
    assert len(set(seeds)) == 64
    assert all(0 <= seed < 2**64 for seed in seeds)
    # All 64 seeds below 2**60 has probability 2**-256.
    assert max(seeds) >= 2**60


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int32(5)])
def test_seeds_taken(seed):
    assert check_seed(seed) == int(seed)


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_seeds_refused(seed, error):
    with pytest.raises(error, match=r"expected .*got"):
        check_seed(seed)


def test_sample_ids_keep_64_bits():
    expected = [0, -1, -(2**63)]
    for ids in (
        [0, 2**64 - 1, 2**63],
        np.array([0, 2**64 - 1, 2**63], dtype=np.uint64),
        (0, np.uint64(2**64 - 1), 2**63),
        torch.tensor(expected).view(torch.uint64),
    ):
        assert check_sample_ids(ids, 3).tolist() == expected
    assert check_sample_ids(np.array([1, 2], dtype=np.uint8), 2).tolist() == [1, 2]
    for dtype in (torch.uint8, torch.uint16, torch.int16, torch.uint32, torch.int32):
        assert check_sample_ids(torch.tensor([1, 100]).to(dtype), 2).tolist() == [1, 100]
    assert check_sample_ids(range(7, 9), 2).tolist() == [7, 8]
    assert check_sample_ids(None, 4).tolist() == [0, 1, 2, 3]
    assert check_sample_ids([], 0).tolist() == []


def test_read_only_sample_ids_are_taken_and_not_shared():
    ids = np.arange(3)
    ids.setflags(write=False)
    check_sample_ids(ids, 3).fill_(9)
    assert ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([0.5, 1.0], TypeError),
        (torch.zeros(2), TypeError),
        (torch.zeros(2, dtype=torch.bool), TypeError),
        ([0, 2**64], ValueError),
        ([True, False], TypeError),
        (np.zeros(2), TypeError),
        ([0], ValueError),
        ([[0, 1]], ValueError),
        ([[0, 1], [2]], ValueError),
    ],
)
def test_sample_ids_refused(ids, error):
    with pytest.raises(error, match=r"sample_ids: expected .*got"):
        check_sample_ids(ids, 2)


@pytest.mark.parametrize(
    ("ids", "value", "index"),
    [
        ([4, 0, -2, -1], -2, 2),
        ((-1, 2**63, 2**64 - 1, 0), -1, 0),
        ([0, 2**63, -5, -6], -5, 2),
        ([0, 2**63, 2**64, 0], 2**64, 2),
        ([0, 1, 2, 2**70], 2**70, 3),
        (range(-1, 3), -1, 0),
        ([np.int64(3), np.int64(-4), 0, 0], -4, 1),
        (np.array([0, 1, 2, -(2**63)]), -(2**63), 3),
        (np.array([5, -7, 2, -3], dtype=np.int16), -7, 1),
        (np.arange(8)[::2] * -1, -2, 1),
        (torch.tensor([0, 1, -1, -9]), -1, 2),
        (torch.tensor([0, -(2**31), 1, 2], dtype=torch.int32), -(2**31), 1),
        (torch.arange(2, -6, -2), -2, 2),
    ],
    ids=repr,
)
def test_ids_outside_their_range_are_refused_wherever_they_come(ids, value, index, purifier, make_images):
    x = make_images(4, 1, 8, 8)
    defended = fastmalade.DefendedClassifier(purifier, torch.nn.Flatten(), n_chains=2)
    labels = torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: check_sample_ids(ids, 4),
        lambda: purifier(x, seed=1, sample_ids=ids),
        lambda: purifier.purify(x, sample_ids=ids),
        lambda: purifier.purify(x.numpy(), sample_ids=ids),
        lambda: purifier.purify(x.double(), sample_ids=ids),
        lambda: small_defense("magnet").purify(x, sample_ids=ids),
        lambda: defended(x, sample_ids=ids),
        lambda: fastmalade.eot_gradient(defended, x, labels, sample_ids=ids),
        lambda: fastmalade.standard_normal(0, ids, 0, (4,)),
    ):
        with pytest.raises(ValueError, match=rf"sample_ids: expected 0 <= id < 2\*\*64, got {value} at index {index}$"):
            call()


def test_ids_that_cannot_be_read_are_not_looked_at():
    negative = torch.tensor([[1, -2], [3, -4]])
    assert torch.equal(torch.vmap(lambda ids: check_sample_ids(ids, 2))(negative), negative)
    assert check_sample_ids(torch.empty(3, dtype=torch.int64, device="meta"), 3, "meta").is_meta
    with FakeTensorMode():
        assert check_sample_ids(torch.arange(3), 3).shape == (3,)


def test_arguments_of_standard_normal_are_checked():
    with pytest.raises(ValueError, match="step: expected"):
        fastmalade.standard_normal(0, [0], 2**32, (4,))
    with pytest.raises(ValueError, match="shape: expected"):
        fastmalade.standard_normal(0, [0], 0, (-1,))
    with pytest.raises(ValueError, match="seed: expected"):
        fastmalade.standard_normal(-1, [0], 0, (4,))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 1, 5)])
def test_odd_shapes(backend, shape):
    assert fastmalade.standard_normal(0, [0, 1], 0, shape, backend=backend).shape == (2, *shape)
