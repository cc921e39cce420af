"""``fastmalade.purify`` and ``fastmalade purify`` with every shipped defence, and settings that only a chain has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastmalade
from fastmalade import Defense
from fastmalade.cli.app import app
from fastmalade.pretrained import read_header

SHIPPED = [name for name in fastmalade.shipped_models() if read_header(name)["kind"] != "classifier"]


def _invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_defence(name, images, tmp_path):
    x = images[:1]
    expected = Defense.from_pretrained(name).purify(x, seed=3)
    assert torch.equal(fastmalade.purify(x, model=name, seed=3), expected)
    np.save(tmp_path / "in.npy", x.numpy())
    done = _invoke("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", name, "--seed", 3, "--quiet")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected.numpy(), rtol=0, atol=1e-6)


def test_small_defences_by_value_and_by_file(defense, images, tmp_path):
    expected = defense.purify(images, seed=3)
    assert torch.equal(fastmalade.purify(images, model=defense, seed=3), expected)
    path = tmp_path / "defense.safetensors"
    defense.save_pretrained(path)
    assert torch.equal(fastmalade.purify(images, model=path, seed=3), expected)


def test_the_chunks_of_the_command_do_not_change_the_result(make_defense, images, tmp_path):
    path = tmp_path / "inc.safetensors"
    make_defense("inc").save_pretrained(path)
    np.save(tmp_path / "in.npy", images.numpy())
    for name, more in (("whole", ()), ("parts", ("--batch-size", 2))):
        out = tmp_path / f"{name}.npy"
        done = _invoke("purify", tmp_path / "in.npy", out, "--model", path, "--seed", 5, *more)
        assert done.exit_code == 0, done.output
    np.testing.assert_allclose(np.load(tmp_path / "parts.npy"), np.load(tmp_path / "whole.npy"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"n_steps": 3}, "n_steps"),
        ({"backend": "cpu"}, "backend"),
        ({"backend": "cpu", "clamp": "all"}, "backend, clamp"),
    ],
)
def test_chain_overrides_are_for_a_purifier(images, overrides, named):
    with pytest.raises(TypeError, match=f"^{named}: expected a Purifier to set this for, got MagNet"):
        fastmalade.purify(images, model="magnet-mnist", **overrides)


def test_chain_options_are_for_a_purifier(images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    done = _invoke(
        "purify", tmp_path / "in.npy", tmp_path / "out.npy", "--model", "magnet-mnist", "--steps", 3, "--backend", "cpu"
    )
    assert done.exit_code == 2
    assert "error: --steps, --backend: expected a Purifier to set this for, got magnet-mnist, a MagNet" in done.stderr
    assert not (tmp_path / "out.npy").exists()


def test_a_classifier_is_no_defence(images, tmp_path):
    with pytest.raises(fastmalade.PretrainedError, match="expected kind defense or purifier, got 'classifier'"):
        fastmalade.purify(images, model="mnist-c")
