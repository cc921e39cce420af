"""Philox words: published known answers, and bit equality with plain Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmalade import backends, reference

U32 = 0xFFFFFFFF
U64 = st.integers(0, 2**64 - 1)


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def words_by_definition(seed: int, sample_id: int, step: int, n_elements: int) -> list[int]:
    key = (seed & U32, seed >> 32)
    blocks = -(-n_elements // 4)
    ids = (sample_id & U32, sample_id >> 32)
    return [word for block in range(blocks) for word in philox4x32_10((block, step, *ids), key)]


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# Known answers published with Random123 (Salmon et al. 2011).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((U32,) * 4, (U32,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_python_integers_give_the_published_words(counter, key, expected):
    assert philox4x32_10(counter, key) == expected


def test_first_words_are_the_known_answer():
    words = reference.philox_words(0, torch.zeros(1, dtype=torch.int64), 0, 4)
    assert words.tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


@settings(max_examples=40, deadline=None)
@given(U64, st.lists(U64, min_size=1, max_size=3), st.integers(0, U32), st.integers(1, 33))
def test_reference_words_equal_python_integers(seed, ids, step, n_elements):
    words = reference.philox_words(seed, torch.tensor([signed(i) for i in ids]), step, n_elements)
    assert words.tolist() == [words_by_definition(seed, i, step, n_elements) for i in ids]


@settings(max_examples=40, deadline=None)
@given(U64, st.lists(U64, min_size=1, max_size=3), st.integers(0, U32), st.integers(1, 33))
def test_native_words_equal_python_integers(seed, ids, step, n_elements):
    if backends.available()["cpu"] is not None:
        pytest.skip(str(backends.available()["cpu"]))
    words = backends.cpu.calls.philox_words(seed, torch.tensor([signed(i) for i in ids]), step, n_elements)
    assert words.tolist() == [words_by_definition(seed, i, step, n_elements) for i in ids]
