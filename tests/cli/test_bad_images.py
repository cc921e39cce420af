"""One bad image in a folder: an error that keeps what was done, or skipped and listed with --skip-bad."""

from __future__ import annotations

import numpy as np
import pytest

SEED = 20


@pytest.fixture
def image_module():
    return pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path, digits, image_module):
    """Eleven digits."""
    (tmp_path / "in").mkdir()
    for k, image in enumerate((digits[0][:11, 0] * 255).byte().numpy()):
        image_module.fromarray(image).save(tmp_path / "in" / f"{k:02d}.png")
    return tmp_path / "in"


@pytest.fixture
def purify(invoke, model_path, tmp_path):
    def run(out, *more, batch=3):
        arguments = [tmp_path / "in", tmp_path / out, "--model", model_path, "--seed", SEED, "--batch-size", batch]
        return invoke("purify", *arguments, "--backend", "torch", *more)

    return run


def _truncate(path, image_module):
    path.write_bytes(path.read_bytes()[:-60])


def _replace(path, image_module):
    path.write_bytes(b"no picture")


def _empty(path, image_module):
    path.write_bytes(b"")


def _enlarge(path, image_module):
    image_module.fromarray(np.zeros((28, 32), np.uint8)).save(path)


def _colour(path, image_module):
    image_module.fromarray(np.zeros((28, 28, 3), np.uint8)).save(path)


BAD = {
    _truncate: "cannot be read as PNG",
    _replace: "cannot be read as PNG",
    _empty: "cannot be read as PNG",
    _enlarge: "expected 28x28 pixels",
    _colour: "expected an 8-bit PNG of mode L, got mode RGB",
}


def _contents(folder, image_module):
    return {entry.name: np.asarray(image_module.open(entry)) for entry in folder.iterdir()}


@pytest.mark.parametrize("spoil", BAD)
def test_skipped_listed_and_the_others_as_without_it(folder, purify, tmp_path, image_module, spoil):
    assert purify("whole").exit_code == 0
    spoil(folder / "04.png", image_module)
    result = purify("out", "--skip-bad", "--quiet")
    assert result.exit_code == 3, result.output
    lines = result.stderr.splitlines()
    assert lines[0] == "1 of 11 images were skipped:"
    assert len(lines) == 2
    assert lines[1].startswith(f"{folder / '04.png'}: {BAD[spoil]}")
    whole, out = (_contents(tmp_path / name, image_module) for name in ("whole", "out"))
    assert out.keys() == whole.keys() - {"04.png"}
    for name, image in out.items():
        # Nothing but rounding may differ: with the noise of another position most pixels would.
        assert np.mean(image != whole[name]) < 0.01, name


def test_several_bad_ones_in_any_place_and_in_a_whole_chunk(folder, purify, tmp_path, image_module):
    for name in ("00", "03", "04", "05", "10"):
        _truncate(folder / f"{name}.png", image_module)
    result = purify("out", "--skip-bad")
    assert result.exit_code == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines() if "in/" in line] == [
        str(folder / f"{name}.png") for name in ("00", "03", "04", "05", "10")
    ]
    assert "6 images purified" in result.stdout
    assert sorted(entry.name[:2] for entry in (tmp_path / "out").iterdir()) == ["01", "02", "06", "07", "08", "09"]


@pytest.mark.parametrize("command", [[], ["purify"]])
def test_help_has_the_exit_codes(invoke, command):
    said = " ".join(invoke(*command, "--help").stdout.split())
    assert "Exit codes: 0 done;" in said
    assert "3 done, but" in said


def test_nothing_to_skip_is_success(folder, purify):
    result = purify("out", "--skip-bad")
    assert result.exit_code == 0
    assert "skipped" not in result.stderr


def test_nothing_but_bad_ones_is_an_error(folder, purify, tmp_path, image_module):
    for entry in folder.iterdir():
        _replace(entry, image_module)
    result = purify("out", "--skip-bad")
    assert result.exit_code == 2
    assert "expected a PNG image that can be read" in result.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("spoil", BAD)
def test_without_the_flag_what_was_written_stays(folder, purify, tmp_path, image_module, spoil):
    spoil(folder / "07.png", image_module)
    result = purify("out")
    assert result.exit_code == 2
    line = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert f"{folder / '07.png'}: {BAD[spoil]}" in line
    assert f"{tmp_path / 'out'} has the first 6 of 11 images, --skip-bad leaves bad files out" in line
    written = _contents(tmp_path / "out", image_module)
    assert sorted(written) == [f"{k:02d}.png" for k in range(6)]
    assert all(image.shape == (28, 28) for image in written.values())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]


def test_an_older_output_is_not_replaced_by_a_part(folder, purify, tmp_path, image_module):
    assert purify("out").exit_code == 0
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "out").iterdir()}
    _truncate(folder / "07.png", image_module)
    result = purify("out", "--force")
    assert result.exit_code == 2
    assert f"{tmp_path / 'out'} is left as it was" in result.stderr
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "out").iterdir()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["in.npy", "in.npz", "in.idx"])
def test_files_have_no_images_to_skip(invoke, tmp_path, model_path, name):
    (tmp_path / name).write_bytes(b"anything")
    result = invoke("purify", tmp_path / name, tmp_path / f"out-{name}", "--model", model_path, "--skip-bad")
    assert result.exit_code == 2
    assert "--skip-bad is for folders of PNG images" in result.stderr


def test_damaged_bytes_are_never_a_traceback(folder, purify, tmp_path, rng):
    """A byte of a PNG at random: what Pillow raises is many things."""
    source = (folder / "05.png").read_bytes()
    for k in range(60):
        spoilt = bytearray(source)
        for position in rng.integers(8, len(source), 3):
            spoilt[position] = rng.integers(256)
        (folder / f"x{k:02d}.png").write_bytes(spoilt)
    result = purify("out", "--skip-bad", batch=64)
    assert result.exit_code == 3, result.output
    assert len(list((tmp_path / "out").iterdir())) + int(result.stderr.split(" of 71")[0].split()[-1]) == 71
