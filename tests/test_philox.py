"""Philox words: published known answers, and bit equality with the definition."""

from __future__ import annotations

import pytest
import reference64
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmalade import backends, reference

U32 = 0xFFFFFFFF
U64 = st.integers(0, 2**64 - 1)


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
    assert reference64.philox(counter, key) == expected


def test_first_words_are_the_known_answer():
    words = reference.philox_words(0, torch.zeros(1, dtype=torch.int64), 0, 4)
    assert words.tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


@given(U64, st.lists(U64, min_size=1, max_size=3), st.integers(0, U32), st.integers(1, 33))
def test_reference_words_are_those_of_the_definition(seed, ids, step, n_elements):
    words = reference.philox_words(seed, torch.tensor([signed(i) for i in ids]), step, n_elements)
    assert words.tolist() == reference64.philox_words(seed, ids, step, -(-n_elements // 4)).tolist()


@given(U64, st.lists(U64, min_size=1, max_size=3), st.integers(0, U32), st.integers(1, 33))
def test_native_words_are_those_of_the_definition(seed, ids, step, n_elements):
    if backends.available()["cpu"] is not None:
        pytest.skip(str(backends.available()["cpu"]))
    words = backends.cpu.calls.philox_words(seed, torch.tensor([signed(i) for i in ids]), step, n_elements)
    assert words.tolist() == reference64.philox_words(seed, ids, step, -(-n_elements // 4)).tolist()
