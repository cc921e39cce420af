"""A command whose output does not fit ends with exit code 2 and one line, and leaves nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastmalade.data import embedded_digits, write_idx

# In a mount namespace of its own: the file system is gone with the command. The listing is what the command left.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=256k none "$DISK" || exit 99
"$@"
status=$?
ls -A "$DISK"
exit $status
"""
PURIFY = "from fastmalade.cli.app import main; main()"


@pytest.fixture
def on_a_small_disk(tmp_path):
    """Run the command with 256 KiB mounted at the folder ``disk``; a skip where mounts are barred."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, of util-linux, to mount a small file system")

    def run(*arguments):
        for namespace in (["unshare", "-m"], ["unshare", "-r", "-m"]):
            result = subprocess.run(
                [*namespace, "sh", "-c", ON_A_SMALL_DISK, "sh", sys.executable, "-c", PURIFY, *map(str, arguments)],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DISK": str(disk), "HOME": str(tmp_path)},
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 99 and "unshare" not in result.stderr:
                return result
        pytest.skip(f"cannot mount a file system here: {result.stderr.strip()}")

    return run


@pytest.fixture
def many(tmp_path):
    """500 images, about 400 kB, as every kind of file."""
    image_module = pytest.importorskip("PIL.Image")
    images = np.random.default_rng(0).integers(0, 256, (500, 28, 28), np.uint8)
    np.save(tmp_path / "in.npy", images)
    np.save(tmp_path / "turned.npy", np.asfortranarray(images))
    np.savez(tmp_path / "in.npz", images=images)
    write_idx(tmp_path / "in.idx", images)
    (tmp_path / "in").mkdir()
    for k, image in enumerate(images):
        image_module.fromarray(image).save(tmp_path / "in" / f"{k:03d}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("source", ["in.npy", "turned.npy", "in.npz", "in.idx", "in"])
def test_a_full_file_system(on_a_small_disk, many, model_path, source):
    out = many / "disk" / source
    result = on_a_small_disk("purify", many / source, out, "--model", model_path, "--quiet", "--batch-size", 64)
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "No space left on device" in result.stderr
    assert str(out) in result.stderr


@pytest.fixture
def too_large(invoke, no_file_over, tmp_path):
    """Run a command that may write ``size`` bytes to a file, and check how it fails over ``named``."""

    def run(size, named, *arguments):
        before = {entry for entry in tmp_path.rglob("*") if entry.is_file()}
        with no_file_over(size):
            result = invoke(*arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert "File too large" in lines[0]
        assert named in lines[0]
        assert "Traceback" not in result.output
        return {str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*") if entry.is_file()} - {
            str(entry.relative_to(tmp_path)) for entry in before
        }

    return run


@pytest.mark.parametrize("source", ["in.npy", "turned.npy", "in.npz", "in.idx"])
def test_purify(too_large, many, model_path, source):
    out = many / f"out-{source}"
    assert too_large(9000, str(out), "purify", many / source, out, "--model", model_path, "--quiet") == set()


def test_purify_a_folder(too_large, many, model_path):
    arguments = ["purify", many / "in", many / "out", "--model", model_path, "--quiet"]
    assert too_large(300, str(many / "out"), *arguments) == set()
    assert not (many / "out").exists()


@pytest.fixture
def training(tmp_path):
    images, labels = embedded_digits()
    write_idx(tmp_path / "images.gz", images[:60])
    np.save(tmp_path / "labels.npy", labels[:60])
    return ["--images", tmp_path / "images.gz", "--labels", tmp_path / "labels.npy", "--epochs", 1]


def test_train_checkpoint_and_weights(too_large, tmp_path, training):
    out, checkpoint = tmp_path / "dae.safetensors", tmp_path / "run.pt"
    arguments = ["train", "autoencoder", out, *training]
    assert too_large(1500, str(checkpoint), *arguments, "--checkpoint", checkpoint) == {"run.pt.log"}
    assert too_large(1500, str(out), *arguments) == set()


def test_attack_state_and_figures(too_large, tmp_path, model_path):
    state, output = tmp_path / "state", tmp_path / "figures.json"
    arguments = ["attack", "--model", model_path, "--images", 5, "--steps", 1, "--eot", 1, "--judge-chains", 1]
    arguments += ["--attacks", "fgsm:blind", "--output", output]
    assert too_large(1000, str(state), *arguments, "--checkpoint-dir", state) == set()
    assert too_large(100, str(output), *arguments) == set()
