"""Philox words, normal deviates and tanh of the Triton kernels."""

from __future__ import annotations

import numpy as np
import pytest
import reference64
import torch

from fastmalade.backends.triton import calls as backend

IDS = torch.tensor([0, 1, -1, 2**40 + 3, -(2**63)])


def test_the_known_answer() -> None:
    words = backend.philox_words(0, torch.tensor([0]), 0, 4)
    assert [f"{word:08x}" for word in words[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("seed", [0, 2**63 + 12345])
@pytest.mark.parametrize("step", [1, 2**31, 2**32 - 1])
def test_words_are_equal_to_the_bit(seed: int, step: int) -> None:
    words = backend.philox_words(seed, IDS, step, 401)
    expected = reference64.philox_words(seed, IDS.tolist(), step, 101)
    assert np.array_equal(words.numpy().astype(np.uint64), expected)


@pytest.mark.parametrize("elements", [1, 3, 5, 784])
def test_normals_within_the_rule(elements: int) -> None:
    z = backend.standard_normal(77, IDS, 3, elements)
    exact = reference64.normals(77, IDS.tolist(), 3, elements)
    reference64.assert_within_rule(z, torch.from_numpy(exact.astype(np.float32)), torch.from_numpy(exact))


def test_the_errors_of_many_normals() -> None:
    ids = torch.arange(5)
    z = backend.standard_normal(5, ids, 0, 4096).numpy()
    exact = reference64.normals(5, ids.tolist(), 0, 4096)
    # The angle's polynomials are exact to an ulp of 1, so a deviate near 0 is not exact to an ulp of its own.
    assert np.abs(z - exact).max() < 1e-6
    assert float(np.abs(exact).max()) > 4.0


def test_a_seed_on_the_device_is_the_same_seed() -> None:
    bits = torch.tensor([2**63 + 5 - 2**64])
    assert torch.equal(backend.standard_normal(bits, IDS, 2, 30), backend.standard_normal(2**63 + 5, IDS, 2, 30))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2**64}, r"seed: expected 0 to 2\*\*64 - 1, got 18446744073709551616"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, r"seed: expected an int or torch.int64 of shape \(1\)"),
        ({"step": -1}, "step: expected 0 to 4294967295, got -1"),
        ({"n_elements": -4}, "n_elements: expected at least 0"),
        ({"sample_ids": torch.zeros(2)}, r"sample_ids: expected torch\.int64 .*got torch\.float32"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict, message: str) -> None:
    arguments = {"seed": 1, "sample_ids": torch.arange(2), "step": 0, "n_elements": 4, **changed}
    with pytest.raises(ValueError, match=message):
        backend.standard_normal(**arguments)
