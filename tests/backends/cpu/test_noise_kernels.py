"""Philox words, normal deviates and tanh of the native backend."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu

SEED = 0x0123456789ABCDEF


def test_first_published_vector(isa: str) -> None:
    words = cpu.philox_words(0, torch.tensor([0]), 0, 4)
    assert words.tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]  # Random123; Salmon et al. 2011


@pytest.mark.parametrize("n_elements", [0, 1, 4, 7, 15, 16, 17, 33, 784, 1001])
def test_words_equal_numpy(isa: str, n_elements: int) -> None:
    ids = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 123456789012345]
    words = cpu.philox_words(SEED, torch.tensor(ids), 2**32 - 1, n_elements)
    expected = reference64.philox_words(SEED, ids, 2**32 - 1, -(-n_elements // 4))
    assert words.shape == (len(ids), 4 * -(-n_elements // 4))
    assert (words.numpy().astype(np.uint64) == expected).all()


def test_words_equal_one_counter_at_a_time(isa: str) -> None:
    seed, sample = 2**64 - 1, 2**40 + 3
    words = cpu.philox_words(seed, torch.tensor([sample]), 9, 40)[0].reshape(-1, 4)
    for k in range(10):
        expected = reference64.philox((k, 9, sample % 2**32, sample >> 32), (seed % 2**32, seed >> 32))
        assert tuple(words[k].tolist()) == expected


def test_normal_deviates_within_4_ulp(isa: str) -> None:
    ids = list(range(40))
    z = cpu.standard_normal(SEED, torch.tensor(ids), 5, 20_001)
    exact = reference64.normals(SEED, ids, 5, 20_001)
    assert z.dtype == torch.float32
    # Relative to each deviate itself: also the smallest ones are right to 4 ulp.
    assert reference64.ulp_error(z.numpy(), exact).max() <= 4.0
    assert abs(float(z.double().mean())) < 5 / z.numel() ** 0.5
    assert abs(float(z.double().var()) - 1) < 5 * (2 / z.numel()) ** 0.5


def test_noise_depends_on_sample_id_and_nothing_else(isa: str) -> None:
    ids = torch.tensor([5, 900, 5, -7])
    whole = cpu.standard_normal(3, ids, 1, 100)
    assert torch.equal(whole[0], whole[2])
    for b, sample in enumerate(ids.tolist()):
        assert torch.equal(cpu.standard_normal(3, torch.tensor([sample]), 1, 37)[0], whole[b, :37])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(cpu.standard_normal(4, ids, 1, 100), whole)
    assert not torch.equal(cpu.standard_normal(3, ids, 2, 100), whole)


def test_wide_instruction_sets_agree_bitwise(native) -> None:
    fused = [name for name in native.isas_supported() if name != "baseline"]
    if len(fused) < 2:
        pytest.skip(f"this processor runs one instruction set with fused multiply-add at most: {fused}")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for name in fused:
            patch.setenv("FASTMALADE_CPU_ISA", name)
            results.append(native.standard_normal(11, torch.arange(9), 0, 333))
    assert all(torch.equal(results[0], other) for other in results[1:])


def native_tanh(isa: str, x: torch.Tensor) -> torch.Tensor:
    extension = importlib.import_module("fastmalade._cpu")
    y = torch.full_like(x, float("nan"))
    extension.tanh(isa=isa, x=x.data_ptr(), n=x.numel(), y=y.data_ptr())
    return y


def test_tanh_within_its_stated_error(isa: str) -> None:
    x = torch.cat([torch.linspace(-10, 10, 400_001), torch.logspace(-37, 1, 100_003), -torch.logspace(-37, 1, 17)])
    y = native_tanh(isa, x)
    assert reference64.ulp_error(y.numpy(), np.tanh(x.double().numpy())).max() <= (8.0 if isa == "baseline" else 6.0)
    assert float(y.abs().max()) <= 1.0
    assert torch.equal(native_tanh(isa, -x), -y)


def test_tanh_at_special_values(isa: str) -> None:
    x = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38])
    y = native_tanh(isa, x)
    assert y[:4].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert torch.signbit(y[:2]).tolist() == [False, True]
    assert 0 <= float(y[4]) <= 1e-44
    assert float(y[5]) == 1.0
    for count in (1, 7, 15, 16, 17, 33):
        assert torch.isnan(native_tanh(isa, torch.full((count,), float("nan")))).all()
