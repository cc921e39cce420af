"""The search for tiles, on a made-up cost."""

from __future__ import annotations

import json
import sys

import pytest
import tune_triton

from fastmalade.backends.triton import tiles as triton_tiles
from fastmalade.backends.triton.tiles import DEFAULTS


def test_the_fastest_tile_of_each_stage_is_found() -> None:
    wanted = {"conv2": tune_triton.PRODUCTS[5], "tail": tune_triton.OTHERS[3]}
    tried = []

    def measure(tiles) -> float:
        tried.append(tiles)
        return 10.0 + sum(tiles[stage] != tile for stage, tile in wanted.items())

    found = tune_triton.tune(measure, list(DEFAULTS))
    assert found == {**DEFAULTS, **wanted}
    assert all(tile in tune_triton.candidates(stage) for tiles in tried for stage, tile in tiles.items())


def test_differences_within_the_noise_change_nothing() -> None:
    times = iter([1.0, *[0.995] * 10_000])
    assert tune_triton.tune(lambda tiles: next(times), list(DEFAULTS)) == DEFAULTS


def test_what_is_written_is_read(tmp_path) -> None:
    path = tmp_path / "new" / "tiles.json"
    tune_triton.write(path, "A", {**DEFAULTS, "conv1": tune_triton.PRODUCTS[0]})
    tune_triton.write(path, "B", DEFAULTS)
    assert sorted(json.loads(path.read_text())) == ["A", "B"]
    assert triton_tiles.read(path, "A") == {"conv1": tune_triton.PRODUCTS[0]}
    assert triton_tiles.read(path, "B") == {}


def test_without_a_device(monkeypatch, capsys) -> None:
    monkeypatch.setattr(tune_triton.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["tune_triton.py"])
    assert tune_triton.main() == 2
    assert "expected a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("stage", list(DEFAULTS))
def test_candidates_are_tiles_of_whole_warps(stage: str) -> None:
    tiles = tune_triton.candidates(stage)
    assert tiles[0] == DEFAULTS[stage]
    assert len(set(tiles)) == len(tiles) > 5
