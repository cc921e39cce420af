"""Every file is written whole or not at all, on a full disk too, and what killed runs leave is swept."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmalade import Autoencoder, ChainConfig, Purifier, files
from fastmalade.attacks.state import RunState
from fastmalade.cli.image_files import open_images
from fastmalade.cli.stages import Stages
from fastmalade.data import embedded_tensors, write_idx
from fastmalade.evaluation import attacked_images
from fastmalade.training import train_autoencoder


def _train(path):
    x, y = embedded_tensors()
    train_autoencoder(x[:12], y[:12], validation=(x[:5], y[:5]), checkpoint=path, epochs=1)


def _cache(path):
    x, y = embedded_tensors()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    attacked_images(model, x[:3], y[:3], "fgsm", 0.1, cache_dir=path)


def _rewrite(path):
    """In chunks, as ``fastmalade purify`` does; the source lies in the folder above."""
    images = open_images(path.parent.parent / f"source{path.suffix}")
    with images.writer(path) as write:
        for start in range(0, 9, 4):
            write(*images.read(start, min(start + 4, 9)))


# Each writes more than a kilobyte.
WRITERS = {
    "result.json": lambda path: files.write_json(path, list(range(999))),
    "images.idx": lambda path: write_idx(path, np.zeros((5, 28, 28), np.uint8)),
    "purified.npy": _rewrite,
    "purified.npz": _rewrite,
    "weights.safetensors": lambda path: Purifier(Autoencoder(), ChainConfig(n_steps=3)).save_pretrained(path),
    "state.safetensors": lambda path: RunState.fresh(torch.zeros(3, 1, 28, 28), 1, 2, spread=False).save(path, {}),
    "training.pt": _train,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty folder under one with sources."""
    values = np.zeros((9, 16, 16), np.float32)
    np.save(tmp_path / "source.npy", values)
    np.savez(tmp_path / "source.npz", values)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file(folder, no_file_over, name):
    with no_file_over(900), pytest.raises(OSError, match=name) as raised:
        WRITERS[name](folder / name)
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(folder / name)
    assert [file.name for file in folder.iterdir() if file.name != "training.pt.log"] == []


@pytest.mark.parametrize("name", ["result.json", "images.idx", "purified.npy", "weights.safetensors"])
def test_a_full_disk_spares_the_file_of_an_earlier_run(folder, no_file_over, name):
    (folder / name).write_bytes(b"of an earlier run")
    with no_file_over(900), pytest.raises(OSError, match=name):
        WRITERS[name](folder / name)
    assert [entry.read_bytes() for entry in folder.iterdir()] == [b"of an earlier run"]


def test_attacked_images_on_a_full_disk(folder, no_file_over):
    with no_file_over(900), pytest.raises(OSError, match=r"00000\.npy") as raised:
        _cache(folder)
    assert raised.value.errno == errno.EFBIG
    assert [entry for entry in folder.rglob("*") if entry.is_file()] == []


def test_a_log_on_a_full_disk_has_whole_lines(folder, no_file_over):
    log = folder / "run.log"
    stages = Stages(log, lambda: 0.0)
    for _ in range(3):
        stages.say("a line")
    with no_file_over(64), pytest.raises(OSError, match=r"run\.log"):
        stages.say("a line")
    assert log.read_text() == "[   0.0 s] a line\n" * 3


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_grows_as_it_is_written(tmp_path, order):
    """A file of full size and no blocks, written through a map, is a bus error where the disk fills up."""
    np.save(tmp_path / "in.npy", np.asarray(np.zeros((64, 32, 32), np.float32), order=order))
    images = open_images(tmp_path / "in.npy")
    with images.writer(tmp_path / "out.npy") as write:
        partial = next(tmp_path.glob(".out*.partial.npy"))
        assert partial.stat().st_size < 1000
        write(*images.read(0, 64))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "in.npy").read_bytes()


@pytest.mark.parametrize("shape", [(7, 5, 3), (33, 4, 8, 2), (1, 6, 10), (0, 4, 4), (9, 11)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<f2"])
def test_npy_chunks_make_the_file_that_numpy_makes(tmp_path, rng, shape, order, dtype):
    values = np.asarray(rng.integers(0, 200, shape).astype(dtype), order=order)
    np.save(tmp_path / "in.npy", values)
    images = open_images(tmp_path / "in.npy")
    with images.writer(tmp_path / "out.npy") as write:
        for start in range(0, max(images.count, 1), 4):
            write(*images.read(start, min(start + 4, images.count)))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "in.npy").read_bytes()


# What a run does that is killed in the middle of writing, by the kind of target.
UNFINISHED = """
import sys, time
from pathlib import Path
from fastmalade import files
with files.{function}(sys.argv[1]) as partial:
    {write}
    print("writing", flush=True)
    time.sleep(600)
"""
FILE = UNFINISHED.format(function="replacing", write="partial.write_text('half')")
FOLDER = UNFINISHED.format(function="replacing_folder", write="(partial / 'a.png').write_text('half')")


def _write_folder(path):
    with files.replacing_folder(path) as partial:
        (partial / "b.png").write_text("whole")


@pytest.mark.parametrize(
    ("name", "code", "write"),
    [
        ("result.json", FILE, WRITERS["result.json"]),
        ("images.npy", FILE, lambda path: files.write_bytes(path, b"whole")),
        ("state.safetensors", FILE, WRITERS["state.safetensors"]),
        ("folder", FOLDER, _write_folder),
        ("odd [name] (1).tar.gz", FILE, lambda path: files.write_bytes(path, b"whole")),
    ],
)
def test_the_next_run_sweeps_what_a_killed_one_left(tmp_path, name, code, write):
    target = tmp_path / name
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        leftover = next(tmp_path.iterdir())
        write(target)
        assert leftover.exists()  # its process lives
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert leftover.exists()
        write(tmp_path / f"other-{name}")
        assert leftover.exists()  # of another target
        write(target)
        assert sorted(tmp_path.iterdir()) == sorted([target, tmp_path / f"other-{name}"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _gone() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("who", ["0123abcd.", ""])
def test_leftovers_of_other_machines_and_older_versions_go_by_age(tmp_path, who):
    leftover = tmp_path / f".a.{who}{_gone()}.89abcdef.partial.json"
    leftover.write_text("half")
    files.write_json(tmp_path / "a.json", 1)
    assert leftover.exists()
    old = time.time() - (files.FOREIGN_DAYS * 86400 + 60)
    os.utime(leftover, (old, old))
    files.write_json(tmp_path / "a.json", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_moved_aside_is_kept_until_there_is_another(tmp_path, monkeypatch):
    target = tmp_path / "out"
    monkeypatch.setattr(os, "getpid", _gone)
    aside = files.beside(target, "old")
    monkeypatch.undo()
    aside.mkdir()
    (aside / "precious.png").write_text("of an earlier run")
    _write_folder(target)
    assert (aside / "precious.png").exists()
    _write_folder(target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_similar_names_are_left_alone(tmp_path):
    pid, machine = _gone(), files._machine()
    names = [
        f"a.{machine}.{pid}.89abcdef.partial.json",
        f".a.{machine}.{pid}.89abcdef.json",
        f".ab.{machine}.{pid}.89abcdef.partial.json",
        f".a.{machine}.{pid}.89abcdef.partial.npy",
        f".a.{machine}.pid.89abcdef.partial.json",
    ]
    for name in names:
        (tmp_path / name).write_text("")
    files.write_json(tmp_path / "a.json", 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*names, "a.json"])


def test_a_leftover_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    leftover = tmp_path / f".a.{files._machine()}.{_gone()}.89abcdef.partial.json"
    leftover.write_text("half")
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == leftover:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(UserWarning, match="left by a run that is gone, cannot be removed"):
        files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("inside", "named"), [("", "out"), ("no/a.png", "out/no/a.png")])
def test_an_error_names_the_place_that_was_asked_for(tmp_path, inside, named):
    def fail():
        with files.replacing_folder(tmp_path / "out") as partial:
            (partial / inside).write_bytes(b"")  # a folder, or in one that is not there

    with pytest.raises(OSError, match=named) as raised:
        fail()
    assert raised.value.filename == str(tmp_path / named)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    def fail():
        with files.replacing(tmp_path / "out"):
            (tmp_path / "source").read_bytes()

    with pytest.raises(FileNotFoundError, match="source") as raised:
        fail()
    assert raised.value.filename == str(tmp_path / "source")


def test_an_error_without_a_number_is_given_the_name(tmp_path):
    """As ``numpy.save`` raises it."""
    expected = f"^{tmp_path / 'out'}: cannot be written .1000 requested and 320 written.$"
    with pytest.raises(OSError, match=expected), files.replacing(tmp_path / "out"):
        raise OSError("1000 requested and 320 written")


def test_the_cache_without_platformdirs(monkeypatch, tmp_path):
    expected = files.user_cache()
    assert expected.name == "fastmalade"
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # an import of it then fails
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.user_cache() == tmp_path / "fastmalade"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.user_cache() == Path.home() / ".cache" / "fastmalade"
    program = (
        "import sys; sys.modules['platformdirs'] = None; import fastmalade; "
        "from fastmalade.data import mnist; from fastmalade.backends.triton import tiles; print(tiles.cache_file())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("triton-tiles.json")
