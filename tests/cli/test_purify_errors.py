"""``fastmalade purify``: bad input ends with one clear line, exit code 2 and nothing written."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from fastmalade import Autoencoder, ChainConfig, Purifier, backends
from fastmalade.data import write_idx


@pytest.fixture
def refused(invoke, model_path, tmp_path):
    """Run ``purify`` on files of tmp_path, check that it refuses cleanly, and give the line it says."""

    def run(source, out, *more):
        before = sorted(tmp_path.rglob("*"))
        result = invoke("purify", tmp_path / source, tmp_path / out, "--model", model_path, *more)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    return run


@pytest.fixture
def images(tmp_path, digits):
    values = digits[0][:5].numpy()
    np.save(tmp_path / "in.npy", values)
    return values


def test_missing_input(refused):
    assert "nothing.npy: no such file or folder" in refused("nothing.npy", "out.npy")


def test_missing_output_folder(refused, images):
    assert "no such folder" in refused("in.npy", "nowhere/out.npy")


def test_other_suffix(refused, images):
    assert "expected a name ending in .npy" in refused("in.npy", "out.npz")


def test_existing_output_is_refused_then_replaced_by_force(refused, invoke, images, model_path, tmp_path):
    (tmp_path / "out.npy").write_bytes(b"precious")
    assert "exists already; give --force" in refused("in.npy", "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == b"precious"
    result = invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", model_path, "--force", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "out.npy").shape == images.shape


def test_force_can_replace_the_input_itself(invoke, images, model_path, tmp_path):
    source = tmp_path / "in.npy"
    result = invoke("purify", source, source, "--model", model_path, "--force", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert not np.array_equal(np.load(source), images)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((3, 28, 28), 1.5, np.float32), ["images 0..2", "[0.0, 1.0]", "1.5"]),
        (np.full((3, 28, 28), np.nan, np.float32), ["finite", "NaN"]),
        (np.zeros((3, 28, 27), np.float32), ["multiples of 4", "(3, 28, 27)"]),
        (np.zeros((0, 28, 27), np.float32), ["no images", "(0, 28, 27)"]),
        (np.zeros((3, 28, 28), np.int64), ["uint8", "int64"]),
        (np.zeros((3, 2, 28, 28), np.float32), ["(3, 2, 28, 28)"]),
        (np.zeros(28, np.float32), ["(28,)"]),
        (np.array(3.0), ["()"]),
    ],
)
def test_bad_values(refused, tmp_path, values, said):
    np.save(tmp_path / "in.npy", values)
    line = refused("in.npy", "out.npy")
    for part in ("in.npy", *said):
        assert part in line


def test_a_bad_value_in_a_later_chunk(refused, tmp_path):
    values = np.zeros((7, 8, 8), np.float32)
    values[5, 3, 3] = -0.25
    np.save(tmp_path / "in.npy", values)
    assert "images 4..5" in refused("in.npy", "out.npy", "--batch-size", 2)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array at all", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", "-idx", ".gz"])
def test_foreign_files(refused, tmp_path, content, suffix):
    (tmp_path / f"in{suffix}").write_bytes(content)
    assert f"in{suffix}" in refused(f"in{suffix}", f"out{suffix}")


def test_truncated_files(refused, tmp_path, rng):
    images = rng.integers(0, 256, (9, 8, 8), np.uint8)
    np.save(tmp_path / "in.npy", images)
    np.savez_compressed(tmp_path / "in.npz", images=images)
    write_idx(tmp_path / "in.idx", images)
    write_idx(tmp_path / "in.gz", images)
    for name in ("in.npy", "in.npz", "in.idx", "in.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        assert name in refused(name, name.replace("in", "out"))


def test_python_objects_are_not_loaded(refused, tmp_path):
    np.save(tmp_path / "in.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "in.npy" in refused("in.npy", "out.npy")


def test_npz_keys(refused, images, tmp_path):
    np.savez(tmp_path / "in.npz", a=images, b=images)
    assert "got 2 arrays: a, b" in refused("in.npz", "out.npz")
    assert "one of a, b, got c" in refused("in.npz", "out.npz", "--key", "c")
    assert "--key is for .npz" in refused("in.npy", "out.npy", "--key", "a")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_array_beside_the_one_to_purify(refused, monkeypatch, images, tmp_path, save):
    save(tmp_path / "in.npz", a=images, other=np.arange(5000) % 77)
    content = bytearray((tmp_path / "in.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "in.npz") as archive:
        start = archive.getinfo("other.npy").header_offset + 500
    content[start : start + 9] = b"\xff" * 9
    (tmp_path / "in.npz").write_bytes(content)
    monkeypatch.setattr(Purifier, "purify", None)  # said before the work, not after it
    assert "in.npz: cannot be read" in refused("in.npz", "out.npz", "--key", "a")


def test_folders_of_pngs(refused, images, tmp_path, rng):
    image_module = pytest.importorskip("PIL.Image")
    folder = tmp_path / "in"
    folder.mkdir()
    assert "found none" in refused("in", "out")

    def put(name, values):
        image_module.fromarray(values).save(folder / name)

    put("a.png", rng.integers(0, 256, (8, 12), np.uint8))
    put("b.png", rng.integers(0, 256, (8, 16), np.uint8))
    assert "expected 8x12 pixels like a.png, got 8x16" in refused("in", "out")
    put("b.png", rng.integers(0, 256, (8, 12, 3), np.uint8))
    assert "expected an 8-bit PNG of mode L, got mode RGB" in refused("in", "out")
    put("b.png", rng.integers(0, 65536, (8, 12), np.uint16))
    assert "got mode I;16" in refused("in", "out")
    (folder / "b.png").write_bytes(b"not a png")
    assert "b.png: cannot be read as PNG" in refused("in", "out")
    put("b.png", rng.integers(0, 256, (8, 12), np.uint8))
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    assert "b.png: cannot be read as PNG" in refused("in", "out")


def test_force_spares_folders_that_hold_other_things(refused, invoke, model_path, tmp_path, rng):
    image_module = pytest.importorskip("PIL.Image")
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        image_module.fromarray(rng.integers(0, 256, (8, 12), np.uint8)).save(tmp_path / name / "a.png")
    assert "exists already" in refused("in", "out")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "also holds 'thesis.tex'" in refused("in", "out", "--force")
    (tmp_path / "out" / "thesis.tex").unlink()
    result = invoke("purify", tmp_path / "in", tmp_path / "out", "--model", model_path, "--force")
    assert result.exit_code == 0, result.output
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]
    np.save(tmp_path / "file.npy", np.zeros((1, 8, 8), np.float32))
    (tmp_path / "dir.npy").mkdir()
    assert "expected a file to replace, got a folder" in refused("file.npy", "dir.npy", "--force")
    assert "expected a folder to replace, got a file" in refused("in", "file.npy", "--force")


def test_pillow_missing(refused, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.setattr("fastmalade.cli.errors.find_spec", lambda name: None)
    assert "pip install 'fastmalade[images]'" in refused("in", "out")


def test_unknown_model(invoke, images, tmp_path):
    result = invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", "resnet")
    assert result.exit_code == 2
    assert "'resnet'" in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_is_no_model(invoke, images, tmp_path):
    result = invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", tmp_path / "in.npy")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_unknown_backend(refused, images, monkeypatch):
    message = refused("in.npy", "out.npy", "--backend", "gpu")
    assert "expected one of torch, cpu" in message
    assert "got 'gpu'" in message
    monkeypatch.setenv("FASTMALADE_BACKEND", "gpu")
    assert "FASTMALADE_BACKEND" in refused("in.npy", "out.npy")


def test_backend_that_cannot_be_had(refused, images, monkeypatch):
    monkeypatch.setattr(backends.cpu.calls, "unavailable_reason", lambda: "taken away by a test")
    assert "taken away by a test" in refused("in.npy", "out.npy", "--backend", "cpu")


def test_a_chain_that_diverges(invoke, images, tmp_path):
    wild = Purifier(Autoencoder(), ChainConfig(n_steps=200, step_size=1e6, noise_scale=0.0, clamp="none"))
    wild.save_pretrained(tmp_path / "wild.safetensors")
    result = invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", tmp_path / "wild.safetensors")
    assert result.exit_code == 2, result.output
    assert "diverged" in result.stderr
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    "options",
    [["--seed", "-1"], ["--seed", str(2**64)], ["--batch-size", "0"], ["--steps", "-1"], ["--nope"]],
)
def test_usage_errors(invoke, images, tmp_path, options):
    result = invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr
