"""MNIST: where its files are searched for, the papers' split, and the sample that ships with the package."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastmalade.data.idx import IdxError, read_idx
from fastmalade.files import user_cache

Split = Literal["train", "validation", "test"]

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TRAIN_IMAGES = 50_000
_SAMPLE = "mnist_test_sample.npz"


class DataNotFoundError(FileNotFoundError):
    """The data set was not found; the message says where it was searched for."""


def find_data_dir(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Folder that holds the four MNIST files (``train-images-idx3-ubyte`` and so on, plain or ``.gz``).

    That is the argument, else the folder in the environment variable ``FASTMALADE_DATA``, else ``fastmalade/mnist`` in
    the per-user cache directory. Only the first of these that is set is searched.

    Raises:
        DataNotFoundError: a file is missing there.
    """
    if explicit is not None:
        folder, source = Path(explicit), "the data_dir argument"
    elif os.environ.get("FASTMALADE_DATA"):
        folder, source = Path(os.environ["FASTMALADE_DATA"]), "FASTMALADE_DATA"
    else:
        folder, source = user_cache() / "mnist", "the per-user cache"
    missing = [name for names in _FILES.values() for name in names if _find_file(folder, name) is None]
    if missing:
        raise DataNotFoundError(
            f"MNIST: expected the files {', '.join(missing)} (plain or .gz) in {folder} (from {source}); "
            "give data_dir=, set FASTMALADE_DATA, or put them into the per-user cache directory"
        )
    return folder


def load_mnist(split: Split, data_dir: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """Images and labels of one split: the first 50,000 training images, the last 10,000, or the 10,000 test images.

    Returns:
        images (n, 1, 28, 28) float32 in [0, 1], labels (n,) int64 in 0..9.

    Raises:
        DataNotFoundError: the files are not there.
        IdxError: a file is damaged or not MNIST's.
        ValueError: an unknown split.

    Source: the 50k/10k/10k split of paper 000, section 5.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split: expected 'train', 'validation' or 'test', got {split!r}")
    folder = find_data_dir(data_dir)
    image_name, label_name = _FILES["test" if split == "test" else "train"]
    images = _read(folder, image_name, rank=3)
    labels = _read(folder, label_name, rank=1)
    if len(images) != len(labels):
        raise IdxError(f"{folder}: expected as many labels as images, got {len(labels)} and {len(images)}")
    if split == "train":
        images, labels = images[:_TRAIN_IMAGES], labels[:_TRAIN_IMAGES]
    elif split == "validation":
        images, labels = images[_TRAIN_IMAGES:], labels[_TRAIN_IMAGES:]
    return torch.from_numpy(images).unsqueeze(1).float().div_(255.0), torch.from_numpy(labels).long()


@lru_cache(maxsize=1)
def _sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    source = resources.files("fastmalade.data").joinpath(_SAMPLE)
    with source.open("rb") as file, np.load(file) as arrays:
        return arrays["images"], arrays["labels"], arrays["indices"]


def embedded_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits that ship with the package: the first 100 of each class in the MNIST test set, in test-set order.

    Returns:
        images (1000, 28, 28) uint8, labels (1000,) int64; fresh arrays on each call.
    """
    images, labels, _ = _sample()
    return images.copy(), labels.copy()


def embedded_tensors() -> tuple[Tensor, Tensor]:
    """:func:`embedded_digits` in the form of :func:`load_mnist`: (1000, 1, 28, 28) float32 in [0, 1], (1000,) int64."""
    images, labels = embedded_digits()
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels)


def embedded_indices() -> np.ndarray:
    """Positions (1000,) int64 of the embedded digits in the MNIST test set, ascending."""
    return _sample()[2].copy()


def _find_file(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _read(folder: Path, name: str, *, rank: int) -> np.ndarray:
    path = _find_file(folder, name)
    if path is None:
        raise DataNotFoundError(f"MNIST: expected {name} or {name}.gz in {folder}")
    values = read_idx(path)
    if values.dtype != np.uint8 or values.ndim != rank:
        raise IdxError(f"{path}: expected uint8 of rank {rank}, got {values.dtype} of rank {values.ndim}")
    return values
