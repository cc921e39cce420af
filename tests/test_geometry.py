"""Balls, directions and random points against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmalade import geometry

NORMS = ["linf", "l2", "l1"]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def sizes(delta, norm):
    return np.linalg.norm(delta.double().numpy().reshape(len(delta), -1), ord=ORDERS[norm], axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_size(rng, norm):
    delta = torch.from_numpy(rng.normal(size=(7, 2, 5, 3)))
    np.testing.assert_allclose(geometry.size(delta, norm), sizes(delta, norm), rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point(rng, norm):
    delta = torch.from_numpy(rng.normal(size=(5, 1, 3, 4)))
    projected = geometry.project(delta, 0.7, norm)
    assert (sizes(projected, norm) <= 0.7 + 1e-12).all()
    distance = (projected - delta).flatten(1).norm(dim=1)
    # No other point of the ball is nearer: the angle at the projection is not acute (convex sets).
    for _ in range(50):
        other = geometry.project(torch.from_numpy(rng.normal(size=(5, 1, 3, 4))), 0.7, norm)
        inner = ((delta - projected) * (other - projected)).flatten(1).sum(1)
        assert float(inner.max()) <= 1e-12
        assert bool(((other - delta).flatten(1).norm(dim=1) >= distance - 1e-12).all())


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay(rng, norm):
    delta = torch.from_numpy(rng.normal(size=(5, 1, 4, 4)))
    inside = delta * (0.69 / torch.from_numpy(sizes(delta, norm)))[:, None, None, None]
    torch.testing.assert_close(geometry.project(inside, 0.7, norm), inside, rtol=1e-12, atol=1e-12)


def test_projection_of_zero_radius_and_zero_perturbation(rng):
    delta = torch.from_numpy(rng.normal(size=(3, 1, 4, 4)))
    for norm in NORMS:
        assert not bool(geometry.project(delta, 0.0, norm).any())
        assert not bool(geometry.project(torch.zeros_like(delta), 0.5, norm).any())


def test_steepest_directions(rng):
    gradient = torch.from_numpy(rng.normal(size=(4, 1, 20, 20)))
    flat = gradient.flatten(1)
    assert torch.equal(geometry.steepest(gradient, "linf"), gradient.sign())
    expected = gradient.numpy() / sizes(gradient, "l2")[:, None, None, None]
    np.testing.assert_allclose(geometry.steepest(gradient, "l2"), expected, rtol=1e-12)
    sparse = geometry.steepest(gradient, "l1").flatten(1)
    assert (sparse != 0).sum(1).tolist() == [4] * 4
    np.testing.assert_allclose(sizes(sparse, "l1"), 1.0, rtol=1e-12)
    for row, values in zip(sparse, flat, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == set(values.abs().topk(4).indices.tolist())
    assert bool(((sparse * flat).sum(1) > 0).all())


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_of_zero_and_of_tiny_gradients(norm):
    assert not bool(geometry.steepest(torch.zeros(2, 1, 4, 4), norm).any())
    tiny = geometry.steepest(torch.full((2, 1, 4, 4), 1e-30), norm)
    np.testing.assert_allclose(sizes(tiny, norm), 1.0, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_fill_the_ball_uniformly(norm):
    """The share of a uniform ball within a fraction q of the radius is q^d, in every norm."""
    d, n = 4, 20000
    points = geometry.random_point(11, torch.arange(n), torch.zeros(n, 1, 2, 2, dtype=torch.float64), 0.5, norm)
    fractions = sizes(points, norm) / 0.5
    assert fractions.max() <= 1.0
    for q in (0.6, 0.8, 0.9):
        assert abs((fractions <= q).mean() - q**d) < 4 * np.sqrt(q**d * (1 - q**d) / n)
    means = points.flatten(1).mean(0)
    assert float(means.abs().max()) < 4 * float(points.std()) / np.sqrt(n)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_depend_on_seed_and_id_only(norm):
    like = torch.zeros(4, 1, 4, 4)
    whole = geometry.random_point(5, torch.tensor([3, 8, 9, 40]), like, 0.3, norm)
    part = geometry.random_point(5, torch.tensor([9]), like[:1], 0.3, norm)
    assert torch.equal(whole[2:3], part)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(geometry.random_point(6, torch.tensor([9]), like[:1], 0.3, norm), part)


def test_check_inside():
    centre = torch.full((2, 1, 4, 4), 0.5)
    geometry.check_inside(centre + 0.1, centre, 0.1, "linf", (0.0, 1.0))
    with pytest.raises(RuntimeError, match=r"linf distance of at most 0\.1"):
        geometry.check_inside(centre + 0.101, centre, 0.1, "linf", (0.0, 1.0))
    with pytest.raises(RuntimeError, match="l1 distance"):
        geometry.check_inside(centre + 0.1, centre, 1.5, "l1", (0.0, 1.0))
    with pytest.raises(RuntimeError, match=r"values in \[0.0, 0.55\]"):
        geometry.check_inside(centre + 0.1, centre, 0.1, "linf", (0.0, 0.55))
    with pytest.raises(RuntimeError, match="finite"):
        geometry.check_inside(centre * torch.nan, centre, 0.1, "linf", (0.0, 1.0))
