"""IDX files: round trips, compression told by content, and clear errors for anything else."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastmalade.data import IdxError, read_idx, write_idx

IDX_DTYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")


@given(
    values=st.sampled_from(IDX_DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    suffix=st.sampled_from(("", ".gz")),
)
def test_round_trip_keeps_shape_dtype_and_bytes(tmp_path_factory, values, suffix):
    path = tmp_path_factory.mktemp("idx") / f"values-idx{suffix}"
    write_idx(path, values)
    back = read_idx(path)
    assert back.dtype == values.dtype
    assert back.dtype.isnative
    assert back.shape == values.shape
    assert back.tobytes() == values.tobytes()
    assert back.flags.writeable


def test_reads_a_file_written_by_hand(tmp_path):
    path = tmp_path / "hand"
    path.write_bytes(b"\x00\x00\x0b\x02" + struct.pack(">IIhhhhhh", 2, 3, 1, -2, 3, 300, 0, -300))
    assert read_idx(path).tolist() == [[1, -2, 3], [300, 0, -300]]


def test_compression_is_told_by_content_not_by_name(tmp_path):
    path = tmp_path / "plain-name"
    write_idx(tmp_path / "x", np.arange(7, dtype=np.uint8))
    path.write_bytes(gzip.compress((tmp_path / "x").read_bytes()))
    assert read_idx(path).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file"),
        (b"\x89PNG....", "expected an IDX file"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x01\x00", "expected an IDX file"),
        (b"\x00\x00\x08\x03\x00\x00", "header of 16 bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05\x01\x02", r"expected 5 bytes of data for shape \(5,\), got 2"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01\x01\x02", r"expected 1 bytes of data for shape \(1,\), got 2"),
        # A fixed time stamp: the content is part of the test's name, which every worker of xdist has to find the same.
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01\x01", mtime=0)[:-3], "complete gzip file"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, content, message):
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(IdxError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_write_refuses_what_idx_cannot_hold_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "labels"
    write_idx(path, np.arange(3, dtype=np.uint8))
    with pytest.raises(IdxError, match="int64"):
        write_idx(path, np.arange(3))
    assert read_idx(path).tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]
