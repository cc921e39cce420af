"""MNIST: where it is looked for, the split, and the digits inside the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmalade.data import (
    DataNotFoundError,
    IdxError,
    embedded_digits,
    embedded_indices,
    find_data_dir,
    load_mnist,
    write_idx,
)

FILES = {
    "train-images-idx3-ubyte.gz": np.zeros((60_000, 1, 1), dtype=np.uint8),
    "train-labels-idx1-ubyte": (np.arange(60_000) // 6000).astype(np.uint8),
    "t10k-images-idx3-ubyte": np.full((10_000, 1, 1), 255, dtype=np.uint8),
    "t10k-labels-idx1-ubyte.gz": (np.arange(10_000) % 10).astype(np.uint8),
}


@pytest.fixture
def small_mnist(tmp_path):
    for name, values in FILES.items():
        write_idx(tmp_path / name, values)
    return tmp_path


def test_embedded_digits_are_balanced_and_fresh():
    images, labels = embedded_digits()
    assert images.shape == (1000, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels, minlength=10).tolist() == [100] * 10
    images[:] = 0
    assert embedded_digits()[0].max() == 255


@pytest.mark.mnist
def test_embedded_digits_are_the_first_hundred_of_each_class_of_the_test_set(mnist):
    images, labels = mnist["test"]
    own, own_labels = embedded_digits()
    indices = embedded_indices()
    assert (np.diff(indices) > 0).all()
    assert (images[indices, 0] * 255).round().to(torch.uint8).numpy().tobytes() == own.tobytes()
    assert labels[indices].tolist() == own_labels.tolist()
    for digit in range(10):
        expected = np.flatnonzero(labels.numpy() == digit)[:100]
        assert indices[own_labels == digit].tolist() == expected.tolist()


def test_split_sizes_and_order(small_mnist):
    train, validation, test = (load_mnist(split, small_mnist) for split in ("train", "validation", "test"))
    assert [len(part[0]) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    joined = torch.cat((train[1], validation[1])).numpy()
    assert joined.tolist() == FILES["train-labels-idx1-ubyte"].tolist()
    assert test[0].shape == (10_000, 1, 1, 1)
    assert test[0].dtype == torch.float32
    assert test[0].unique().tolist() == [1.0]
    assert test[1].dtype == torch.int64


def test_argument_wins_over_environment_and_environment_over_cache(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMALADE_DATA", str(small_mnist))
    assert find_data_dir() == small_mnist
    with pytest.raises(DataNotFoundError, match="data_dir argument"):
        find_data_dir(tmp_path / "nowhere")
    monkeypatch.setenv("FASTMALADE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataNotFoundError, match="FASTMALADE_DATA"):
        find_data_dir()
    monkeypatch.delenv("FASTMALADE_DATA")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    with pytest.raises(DataNotFoundError, match=r"cache.fastmalade.mnist \(from the per-user cache\)"):
        find_data_dir()


def test_a_missing_file_is_named(small_mnist):
    (small_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFoundError, match="expected the files t10k-labels-idx1-ubyte "):
        load_mnist("test", small_mnist)


def test_foreign_contents_and_unequal_lengths_are_errors(small_mnist):
    write_idx(small_mnist / "t10k-images-idx3-ubyte", np.zeros((4, 2), dtype=np.uint8))
    with pytest.raises(IdxError, match="rank 3, got uint8 of rank 2"):
        load_mnist("test", small_mnist)
    write_idx(small_mnist / "t10k-images-idx3-ubyte", np.zeros((4, 2, 2), dtype=np.uint8))
    with pytest.raises(IdxError, match="as many labels as images, got 10000 and 4"):
        load_mnist("test", small_mnist)
    with pytest.raises(ValueError, match="got 'valid'"):
        load_mnist("valid", small_mnist)
