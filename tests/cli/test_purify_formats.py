"""``fastmalade purify``: what goes in comes out in the same format, and equals the library's own answer."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest
import torch

from fastmalade import Purifier, backends
from fastmalade.data import read_idx, write_idx

SEED = 2**63 + 11


def _expected(model_path, images, n_steps=None):
    overrides = {} if n_steps is None else {"n_steps": n_steps}
    count = 1 if images.ndim == 2 else len(images)
    ids = np.arange(count)
    return Purifier.from_pretrained(model_path).purify(images, seed=SEED, sample_ids=ids, **overrides)


def _assert_same(result, expected):
    """Bitwise on the cpu backend; torch's own convolutions round differently from size to size."""
    assert result.dtype.newbyteorder("=") == expected.dtype
    if backends.available()["cpu"] is None:
        np.testing.assert_array_equal(result, expected)
    else:
        tolerance = {"uint8": 1, "float16": 1e-3}.get(expected.dtype.name, 2e-6)
        np.testing.assert_allclose(result.astype(np.float64), expected.astype(np.float64), atol=tolerance, rtol=0)


def _purify(invoke, source, out, model_path, *more):
    result = invoke("purify", source, out, "--model", model_path, "--seed", SEED, *more)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16", ">f4"])
@pytest.mark.parametrize("shape", [(12, 20), (7, 28, 28), (17, 1, 4, 8), (5, 8, 12, 1), (1, 28, 28)])
def test_npy_round_trip(invoke, model_path, tmp_path, rng, dtype, shape):
    images = rng.random(shape)
    images = (images * 255).astype(dtype) if dtype == "uint8" else images.astype(dtype)
    np.save(tmp_path / "in.npy", images)
    _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path, "--batch-size", 3)
    result = np.load(tmp_path / "out.npy")
    assert result.dtype == images.dtype
    assert result.shape == images.shape
    native = images.astype(images.dtype.newbyteorder("="))
    _assert_same(result, _expected(model_path, native))
    assert not np.array_equal(result, images)
    np.testing.assert_array_equal(np.load(tmp_path / "in.npy"), images)


def test_npy_keeps_column_order(invoke, model_path, tmp_path, rng):
    images = np.asfortranarray(rng.random((6, 8, 12)).astype(np.float32))
    np.save(tmp_path / "in.npy", images)
    _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path)
    result = np.load(tmp_path / "out.npy")
    assert result.flags.f_contiguous
    _assert_same(result, _expected(model_path, np.ascontiguousarray(images)))


@pytest.mark.parametrize("batch_size", [1, 2, 15, 16, 17, 33, 1000])
def test_result_does_not_depend_on_the_batch_size(invoke, model_path, tmp_path, digits, batch_size):
    images = digits[0][:33].numpy()
    np.save(tmp_path / "in.npy", images)
    _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path, "--batch-size", batch_size)
    _assert_same(np.load(tmp_path / "out.npy"), _expected(model_path, images))


@pytest.mark.parametrize("threads", [1, 2])
def test_result_does_not_depend_on_threads(invoke, model_path, tmp_path, digits, threads):
    images = digits[0][:17].numpy()
    np.save(tmp_path / "in.npy", images)
    before = torch.get_num_threads()
    _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path, "--threads", threads)
    assert torch.get_num_threads() == before
    _assert_same(np.load(tmp_path / "out.npy"), _expected(model_path, images))


def test_steps_option(invoke, model_path, tmp_path, digits):
    images = digits[0][:4].numpy()
    np.save(tmp_path / "in.npy", images)
    for steps in (0, 1, 5):
        out = tmp_path / f"out{steps}.npy"
        _purify(invoke, tmp_path / "in.npy", out, model_path, "--steps", steps)
        _assert_same(np.load(out), _expected(model_path, images, steps))
    np.testing.assert_array_equal(np.load(tmp_path / "out0.npy"), images)


def test_backend_option(invoke, model_path, tmp_path, digits):
    images = digits[0][:4].numpy()
    np.save(tmp_path / "in.npy", images)
    _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path, "--backend", "torch")
    expected = Purifier.from_pretrained(model_path, backend="torch").purify(images, seed=SEED)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_fresh_seed_is_drawn_and_printed(invoke, model_path, tmp_path, digits):
    images = digits[0][:3].numpy()
    np.save(tmp_path / "in.npy", images)
    seeds = []
    for name in ("a.npy", "b.npy"):
        result = invoke("purify", tmp_path / "in.npy", tmp_path / name, "--model", model_path)
        assert result.exit_code == 0, result.output
        seeds.append(result.stdout.split("seed ")[1].split(",")[0])
    assert seeds[0] != seeds[1]
    assert not np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    again = invoke("purify", tmp_path / "in.npy", tmp_path / "c.npy", "--model", model_path, "--seed", seeds[0])
    assert again.exit_code == 0, again.output
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "c.npy"))


@pytest.mark.parametrize("shape", [(0, 28, 28), (0, 1, 8, 4)])
def test_empty_files(invoke, model_path, tmp_path, shape):
    np.save(tmp_path / "in.npy", np.zeros(shape, np.float32))
    result = _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path)
    assert np.load(tmp_path / "out.npy").shape == shape
    assert "0 images" in result.stdout


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_with_one_array(invoke, model_path, tmp_path, rng, compressed):
    images = rng.integers(0, 256, (7, 12, 8), np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "in.npz", pictures=images)
    _purify(invoke, tmp_path / "in.npz", tmp_path / "out.npz", model_path, "--batch-size", 2)
    with np.load(tmp_path / "out.npz") as result:
        assert result.files == ["pictures"]
        _assert_same(result["pictures"], _expected(model_path, images))
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        wanted = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        assert archive.infolist()[0].compress_type == wanted


def test_npz_with_key_copies_the_other_arrays(invoke, model_path, tmp_path, digits):
    images, labels = digits[0][:15].numpy(), digits[1][:15].numpy()
    np.savez(tmp_path / "in.npz", images=images, labels=labels)
    _purify(invoke, tmp_path / "in.npz", tmp_path / "out.npz", model_path, "--key", "images")
    with np.load(tmp_path / "out.npz") as result:
        assert result.files == ["images", "labels"]
        _assert_same(result["images"], _expected(model_path, images))
        np.testing.assert_array_equal(result["labels"], labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_idx_round_trip(invoke, model_path, tmp_path, rng, suffix, dtype):
    images = rng.random((7, 16, 20))
    images = (images * 255).astype(dtype) if dtype == "uint8" else images.astype(dtype)
    source, out = tmp_path / f"in-idx3-ubyte{suffix}", tmp_path / f"out-idx3-ubyte{suffix}"
    write_idx(source, images)
    _purify(invoke, source, out, model_path, "--batch-size", 4)
    result = read_idx(out)
    assert result.dtype == images.dtype
    _assert_same(result, _expected(model_path, images))
    assert out.read_bytes().startswith(b"\x1f\x8b") == (suffix == ".gz")


def test_idx_is_recognised_by_content(invoke, model_path, tmp_path, rng):
    images = rng.integers(0, 256, (3, 8, 8), np.uint8)
    write_idx(tmp_path / "plain", images)
    (tmp_path / "named-as-plain").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    _purify(invoke, tmp_path / "named-as-plain", tmp_path / "out", model_path)
    _assert_same(read_idx(tmp_path / "out"), _expected(model_path, images))


@pytest.mark.parametrize("count", [1, 7, 17])
def test_folder_of_grey_pngs(invoke, model_path, tmp_path, rng, count):
    image_module = pytest.importorskip("PIL.Image")
    images = rng.integers(0, 256, (count, 12, 20), np.uint8)
    (tmp_path / "in").mkdir()
    # Written in the order of the shuffled names, read in the order of the sorted ones.
    names = [f"{k:03d}.png" for k in range(count)]
    for k in rng.permutation(count):
        image_module.fromarray(images[k]).save(tmp_path / "in" / names[k])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    result = _purify(invoke, tmp_path / "in", tmp_path / "out", model_path, "--batch-size", 4)
    assert "1 entries" in result.stderr
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == names
    expected = _expected(model_path, images)
    for k, name in enumerate(names):
        with image_module.open(tmp_path / "out" / name) as image:
            assert image.mode == "L"
            _assert_same(np.asarray(image), expected[k])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]


def test_folder_of_rgb_pngs(invoke, rgb_model_path, tmp_path, rng):
    image_module = pytest.importorskip("PIL.Image")
    images = rng.integers(0, 256, (3, 8, 12, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for k in range(3):
        image_module.fromarray(images[k]).save(tmp_path / "in" / f"{k}.PNG")
    _purify(invoke, tmp_path / "in", tmp_path / "out", rgb_model_path)
    expected = _expected(rgb_model_path, images)
    for k in range(3):
        with image_module.open(tmp_path / "out" / f"{k}.PNG") as image:
            _assert_same(np.asarray(image), expected[k])


def test_quiet_prints_nothing(invoke, model_path, tmp_path, digits):
    np.save(tmp_path / "in.npy", digits[0][:3].numpy())
    result = _purify(invoke, tmp_path / "in.npy", tmp_path / "out.npy", model_path, "--quiet")
    assert result.output.strip() == ""
