"""ChainConfig: the annealing formula, validation, overrides and the round trip through a dictionary."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmalade import ChainConfig


@given(
    st.integers(0, 60),
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(0, 3),
    st.floats(0.01, 1e3),
)
def test_formula(n_steps, step_size, noise_scale, decay, offset):
    a, d = ChainConfig(n_steps, step_size, noise_scale, decay, offset).schedule()
    assert len(a) == len(d) == n_steps
    for t in range(n_steps):
        shrink = ((offset + t) / offset) ** decay
        assert a[t] == pytest.approx(step_size / shrink, rel=1e-12, abs=1e-300)
        assert d[t] ** 2 == pytest.approx(noise_scale**2 / shrink, rel=1e-12, abs=1e-300)


def test_without_decay_the_schedule_is_constant():
    assert ChainConfig(n_steps=3, step_size=0.25, noise_scale=0.5).schedule() == ([0.25] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("clamp", "lows", "highs"),
    [
        ("none", [-math.inf] * 3, [math.inf] * 3),
        ("final", [-math.inf, -math.inf, -1.0], [math.inf, math.inf, 2.0]),
        ("every_step", [-1.0] * 3, [2.0] * 3),
    ],
)
def test_clamp_bounds(clamp, lows, highs):
    assert ChainConfig(n_steps=3, clamp=clamp).clamp_bounds((-1.0, 2.0)) == (lows, highs)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"n_steps": -1}, ValueError),
        ({"n_steps": 2.0}, TypeError),
        ({"n_steps": True}, TypeError),
        ({"n_steps": 2**32}, ValueError),
        ({"step_size": -0.1}, ValueError),
        ({"step_size": math.nan}, ValueError),
        ({"step_size": "0.1"}, TypeError),
        ({"noise_scale": -1.0}, ValueError),
        ({"noise_scale": math.inf}, ValueError),
        ({"decay": -1}, ValueError),
        ({"offset": 0.0}, ValueError),
        ({"offset": -2.0}, ValueError),
        ({"clamp": "always"}, ValueError),
    ],
)
def test_fields_are_validated(values, error):
    (name,) = values
    with pytest.raises(error, match=f"{name}: expected .*got"):
        ChainConfig(**values)
    with pytest.raises(error, match=f"{name}: expected .*got"):
        ChainConfig().replace(**values)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ChainConfig().n_steps = 3  # type: ignore[misc]


def test_replace_rejects_unknown_names():
    config = ChainConfig(n_steps=4)
    assert config.replace(step_size=1) == ChainConfig(n_steps=4, step_size=1.0)
    with pytest.raises(TypeError, match="unknown chain setting steps: expected any of n_steps"):
        config.replace(steps=3)


def test_round_trip_through_json():
    config = ChainConfig(n_steps=7, step_size=0.1, noise_scale=0.2, decay=0.3, offset=4.0, clamp="every_step")
    assert ChainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="unknown chain setting"):
        ChainConfig.from_dict({**config.to_dict(), "theta": 1.0})
