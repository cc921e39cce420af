"""Data: IDX files, MNIST with the papers' split, and a balanced sample of real digits inside the package."""

from __future__ import annotations

from fastmalade.data.idx import IdxError, read_idx, write_idx
from fastmalade.data.mnist import (
    DataNotFoundError,
    embedded_digits,
    embedded_indices,
    embedded_tensors,
    find_data_dir,
    load_mnist,
)

__all__ = [
    "DataNotFoundError",
    "IdxError",
    "embedded_digits",
    "embedded_indices",
    "embedded_tensors",
    "find_data_dir",
    "load_mnist",
    "read_idx",
    "write_idx",
]
