"""Tile sizes: defaults, pinned files, and what is wrong with a file."""

from __future__ import annotations

import json

import pytest

from fastmalade.backends.triton import tiles as triton_tiles
from fastmalade.backends.triton.tiles import DEFAULTS, Tile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_tiles, "cache_file", lambda: tmp_path / "cache" / "tiles.json")
    monkeypatch.delenv(triton_tiles.VARIABLE, raising=False)
    triton_tiles._tiles.cache_clear()
    yield
    triton_tiles._tiles.cache_clear()


def write(path, content) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_defaults_cached_and_pinned(tmp_path, monkeypatch) -> None:
    assert triton_tiles.tiles("A") == DEFAULTS
    triton_tiles._tiles.cache_clear()
    write(tmp_path / "cache" / "tiles.json", {"A": {"conv2": {"block_m": 32}}})
    assert triton_tiles.tiles("A")["conv2"] == Tile(32, DEFAULTS["conv2"].num_warps, DEFAULTS["conv2"].num_stages)
    assert triton_tiles.tiles("B") == DEFAULTS
    table = {"*": {"tail": {"num_warps": 1}, "conv1": {"num_warps": 8}}, "A": {"tail": {"num_warps": 2}}}
    monkeypatch.setenv(triton_tiles.VARIABLE, write(tmp_path / "pinned.json", table))
    tiles = triton_tiles.tiles("A")
    assert (tiles["tail"].num_warps, tiles["conv1"].num_warps) == (2, 8)
    assert tiles["conv2"] == DEFAULTS["conv2"]  # a pinned file stands alone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got"),
        ([], "expected an object of devices, got list"),
        ({"A": 3}, "A: expected an object of stages, got int"),
        ({"A": {"conv7": {}}}, "expected stages among conv1, .*, got conv7"),
        ({"A": {"conv1": {"block_m": 48}}}, "conv1: block_m: expected one of 16, 32, .*, got 48"),
        ({"A": {"conv1": {"num_warps": 3}}}, "conv1: num_warps: expected one of 1, 2, 4, 8, got 3"),
        ({"A": {"conv1": {"num_stages": True}}}, "conv1: num_stages: expected one of .*, got True"),
        ({"A": {"conv1": {"block_k": 32}}}, "conv1: .*block_k"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, monkeypatch, content, message: str) -> None:
    monkeypatch.setenv(triton_tiles.VARIABLE, write(tmp_path / "pinned.json", content))
    with pytest.raises(ValueError, match=rf"pinned\.json: {message}"):
        triton_tiles.tiles("A")


def test_a_pinned_file_that_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(triton_tiles.VARIABLE, str(tmp_path / "nowhere.json"))
    with pytest.raises(FileNotFoundError):
        triton_tiles.tiles("A")
