"""An interrupted ``fastmalade purify`` leaves nothing behind, in a process of its own."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from fastmalade.data import write_idx

# The command, which touches the file that STARTED names once it has images in hand.
SAYS_WHEN_PURIFYING = """
import os, pathlib
from fastmalade import Purifier
from fastmalade.cli.app import main

purify = Purifier.purify

def announced(self, *args, **kwargs):
    pathlib.Path(os.environ["STARTED"]).touch()
    return purify(self, *args, **kwargs)

Purifier.purify = announced
main()
"""


@pytest.fixture
def slow_inputs(tmp_path):
    """The same images as .npy, .npz, IDX and PNGs: enough work for a signal to arrive in it."""
    image_module = pytest.importorskip("PIL.Image")
    images = np.random.default_rng(0).integers(0, 256, (500, 28, 28), np.uint8)
    np.save(tmp_path / "in.npy", images)
    np.savez(tmp_path / "in.npz", images=images)
    write_idx(tmp_path / "in.idx.gz", images)
    (tmp_path / "in").mkdir()
    for k, image in enumerate(images):
        image_module.fromarray(image).save(tmp_path / "in" / f"{k:03d}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "out", "number"),
    [
        # Every kind of file, every signal: what is left does not depend on which signal it was.
        ("in.npy", "out.npy", signal.SIGTERM),
        pytest.param("in.npz", "out.npz", signal.SIGINT, marks=pytest.mark.repetition),
        pytest.param("in.idx.gz", "out.idx.gz", signal.SIGINT, marks=pytest.mark.repetition),
        pytest.param("in", "out", signal.SIGHUP, marks=pytest.mark.repetition),
    ],
)
def test_nothing_is_left(slow_inputs, tmp_path_factory, model_path, spawn, source, out, number):
    before = sorted(slow_inputs.iterdir())
    started = tmp_path_factory.mktemp("started") / "flag"
    process = spawn(
        "purify",
        slow_inputs / source,
        slow_inputs / out,
        "--model",
        model_path,
        "--batch-size",
        1,
        "--steps",
        20_000,
        code=SAYS_WHEN_PURIFYING,
        STARTED=str(started),
    )
    deadline = time.monotonic() + 120
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.exists()
    if source in ("in.npy", "in"):  # the other kinds hold their unfinished output in memory
        assert any(".partial" in entry.name for entry in slow_inputs.iterdir())
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr
    assert f"{out} was not written" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert sorted(slow_inputs.iterdir()) == before


@pytest.mark.slow
def test_a_whole_run_in_a_process_without_terminal(slow_inputs, model_path, spawn):
    process = spawn("purify", slow_inputs / "in.idx.gz", slow_inputs / "out.idx.gz", "--model", model_path, "--seed", 5)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "500 images purified" in stdout
    assert "seed 5" in stdout
    assert (slow_inputs / "out.idx.gz").stat().st_size > 0


@pytest.mark.slow
def test_an_ignored_hangup_stays_ignored(slow_inputs, tmp_path, model_path, spawn):
    started = tmp_path / "flag"
    process = spawn(
        "purify", slow_inputs / "in.npy", slow_inputs / "out.npy", "--model", model_path,
        "--batch-size", 5, "--steps", 100,
        code=SAYS_WHEN_PURIFYING, ignored=(signal.SIGHUP,), STARTED=str(started),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert (slow_inputs / "out.npy").exists()
