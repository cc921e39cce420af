"""Lengths of the steps of iterative attacks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastmalade.attacks import PGD


def test_steps_that_fall(linear, few):
    even, falling = (PGD(epsilon=0.3, steps=8, step_size=0.02, schedule=s, seed=2) for s in ("constant", "cosine"))
    assert [even.size_of_step(t) for t in range(8)] == [0.02] * 8
    sizes = [falling.size_of_step(t) for t in range(8)]
    assert sizes[0] == pytest.approx(0.02)
    assert sizes[4] == pytest.approx(0.02 * (0.01 + 0.99 / 2))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0.0002
    # From the images themselves: signs times the lengths of the steps, wherever no sign has turned.
    still = dataclasses.replace(falling, random_start=False, steps=2)
    images, labels = few[0].clamp(0.1, 0.9), few[1]
    moved = still(linear, images, labels).adversarial - images
    lengths = (still.size_of_step(0) + still.size_of_step(1), still.size_of_step(0) - still.size_of_step(1), 0.0)
    nearest = (moved.abs()[..., None] - torch.tensor(lengths)).abs().amin(-1)
    assert float(nearest.max()) < 1e-6
    assert float((moved.abs() - lengths[0]).abs().lt(1e-6).float().mean()) > 0.5
    with pytest.raises(ValueError, match="schedule: expected one of constant, cosine, got 'linear'"):
        PGD(epsilon=0.3, schedule="linear")
