"""The pure-torch operations against their definitions, finite differences, and a chain solved in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference64
import torch

import fastmalade
from fastmalade import reference


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 4, 8), (2, 12, 4)])
def test_reconstruction_by_definition(make_autoencoder, make_images, channels, height, width):
    model = make_autoencoder(channels, (3, 5), dtype=torch.float64)
    x = make_images(2, channels, height, width, dtype=torch.float64)
    expected = reference64.forward(x, model.weights()).detach()
    np.testing.assert_allclose(reference.autoencoder_forward(x, model.weights()).detach(), expected, atol=1e-13)
    np.testing.assert_allclose(model(x).detach(), expected, atol=1e-13)


def test_one_step_by_definition(make_images):
    x, r, z = (make_images(2, 3, 4, 8, dtype=torch.float64, seed=s) for s in range(3))
    z = 4 * z - 2
    expected = np.clip(x.numpy() + 0.3 * (r.numpy() - x.numpy()) + 0.7 * z.numpy(), 0.1, 0.8)
    step = reference.langevin_step(x, r, 0.3, 0.7, z, low=0.1, high=0.8)
    np.testing.assert_allclose(step, expected, rtol=0, atol=1e-15)
    assert bool((step == 0.1).any())
    assert bool((step == 0.8).any())


def test_step_without_noise_reads_none(make_images):
    x, r = make_images(1, 1, 4, 4, seed=0), make_images(1, 1, 4, 4, seed=1)
    poison = torch.full_like(x, math.nan)
    assert torch.equal(reference.langevin_step(x, r, 0.5, 0.0, poison), x + 0.5 * (r - x))
    with pytest.raises(ValueError, match="expected noise z"):
        reference.langevin_step(x, r, 0.5, 0.1)


def test_nan_passes_through_the_clamp(make_images):
    x = make_images(1, 1, 4, 4)
    x[0, 0, 0, 0] = math.nan
    step = reference.langevin_step(x, x, 0.5, low=0.0, high=1.0)
    assert torch.equal(torch.isnan(step), torch.isnan(x))


@pytest.mark.parametrize("n_steps", [0, 1, 10])
def test_chain_by_definition(make_autoencoder, make_images, n_steps):
    model = make_autoencoder(1, (3, 5), dtype=torch.float64)
    x = make_images(3, 1, 12, 8, dtype=torch.float64)
    a = [0.5 / (1 + t) for t in range(n_steps)]
    d = [0.3 / (1 + t) for t in range(n_steps)]
    noise = [torch.from_numpy(reference64.normals(5, [0, 1, 2], t, 96)).reshape(x.shape) for t in range(n_steps)]
    expected = reference64.chain(x, model.weights(), a, d, noise, 0.0, 1.0).detach()
    states = reference.langevin_chain(
        x, model, a, d, lows=[0.0] * n_steps, highs=[1.0] * n_steps, seed=5, trajectory=True
    )
    assert states.shape == (n_steps + 1, 3, 1, 12, 8)
    assert torch.equal(states[0], x)
    np.testing.assert_allclose(states.detach(), expected, atol=1e-12)


def test_chain_with_noise_needs_a_seed(make_images):
    with pytest.raises(ValueError, match="expected seed or noise"):
        reference.langevin_chain(make_images(1, 1, 4, 4), torch.tanh, [0.1], [0.1])


def test_gradcheck_of_the_reference_chain(make_autoencoder, make_images):
    model = make_autoencoder(1, (2, 3), dtype=torch.float64).requires_grad_(False)
    x = make_images(2, 1, 4, 4, dtype=torch.float64).requires_grad_()
    noise = (make_images(3, 2, 1, 4, 4, dtype=torch.float64, seed=2) - 0.5).requires_grad_()

    def chain(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return reference.langevin_chain(
            x, model, [0.5, 0.4, 0.3], [0.2, 0.1, 0.1], noise=noise, lows=[0.2] * 3, highs=[0.7] * 3
        )

    result = chain(x, noise)
    assert bool((result == 0.2).any() or (result == 0.7).any())
    torch.autograd.gradcheck(chain, (x, noise))


def test_written_out_vjp_equals_autograd(make_autoencoder, make_images):
    model = make_autoencoder(2, (3, 5), dtype=torch.float64)
    weights = model.weights()
    x = make_images(3, 2, 8, 12, dtype=torch.float64).requires_grad_()
    cotangent = make_images(3, 2, 8, 12, dtype=torch.float64, seed=5) - 0.5
    expected = torch.autograd.grad(model(x), (x, *weights), cotangent)
    with torch.no_grad():
        activations = reference.autoencoder_activations(x, weights)
        gradient, sums = reference.autoencoder_vjp(cotangent, activations, weights, weight_gradients=True)
    torch.testing.assert_close((gradient, *sums), expected, rtol=1e-12, atol=1e-12)


class LinearAutoencoder(torch.nn.Module):
    """r(x) = A x + b on four pixels, A symmetric with eigenvalues inside (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        mixing = torch.tensor([[0.5, 0.2, 0.0, 0.1], [0.2, 0.3, 0.1, 0.0], [0.0, 0.1, -0.4, 0.2], [0.1, 0.0, 0.2, 0.1]])
        self.register_buffer("matrix", mixing)
        self.register_buffer("offset", torch.tensor([0.3, -0.2, 0.5, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ self.matrix.T + self.offset).reshape(x.shape)


def test_stationary_distribution_of_a_linear_autoencoder():
    """x' = M x + a b + d z with M = (1 - a) I + a A: mean (I - A)^-1 b, covariance d^2 (I - M^2)^-1."""
    model = LinearAutoencoder()
    a, d, n_steps, n_chains = 0.6, 0.4, 60, 8192
    matrix, offset = model.matrix.double().numpy(), model.offset.double().numpy()
    transition = (1 - a) * np.eye(4) + a * matrix
    mean = np.linalg.solve(np.eye(4) - matrix, offset)
    covariance = d**2 * np.linalg.inv(np.eye(4) - transition @ transition)
    # What is left of the start after n_steps is far below every standard error used here.
    assert np.abs(np.linalg.eigvalsh(transition)).max() ** n_steps * np.abs(mean).max() < 1e-6
    x = fastmalade.langevin_chain(torch.zeros(n_chains, 1, 2, 2), model, [a] * n_steps, [d] * n_steps, seed=2024)
    sample = x.double().flatten(1).numpy()
    # Standard error of a mean sqrt(S_ii / n); of a covariance sqrt((S_ii S_jj + S_ij^2) / (n - 1)), Isserlis.
    mean_error = np.sqrt(np.diag(covariance) / n_chains)
    np.testing.assert_array_less(np.abs(sample.mean(0) - mean), 4.5 * mean_error)
    variances = np.outer(np.diag(covariance), np.diag(covariance))
    covariance_error = np.sqrt((variances + covariance**2) / (n_chains - 1))
    np.testing.assert_array_less(np.abs(np.cov(sample.T) - covariance), 4.5 * covariance_error)
