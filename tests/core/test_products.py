"""Products with the Jacobian of one reconstruction, through the kernels and through autograd."""

from __future__ import annotations

import pytest
import torch

from fastmalade import autoencoder_vjp, reconstruction_error_gradient


def by_hand(model, x, cotangent):
    """Both products in float64, by the whole Jacobian of each image."""
    products, errors = [], []
    for image, v in zip(x.double(), cotangent.double(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], image)
        jacobian = jacobian.reshape(image.numel(), image.numel())
        residual = (image - model(image[None])[0]).flatten()
        products.append((jacobian.T @ v.flatten()).reshape(image.shape))
        errors.append((2 * residual - jacobian.T @ (2 * residual)).reshape(image.shape))
    return torch.stack(products), torch.stack(errors)


@pytest.mark.parametrize("kind", ["table 8", "callable"])
@pytest.mark.parametrize("channels", [1, 3])
def test_products(make_autoencoder, make_images, backend, channels, kind):
    model = make_autoencoder(channels).requires_grad_(False)
    x, cotangent = make_images(3, channels, 8, 12), make_images(3, channels, 8, 12, seed=5) - 0.5
    exact, exact_error = by_hand(make_autoencoder(channels).requires_grad_(False).double(), x, cotangent)
    r = model if kind == "table 8" else model.forward
    torch.testing.assert_close(autoencoder_vjp(r, x, cotangent, backend=backend).double(), exact, rtol=0, atol=2e-6)
    error = reconstruction_error_gradient(r, x, backend=backend)
    torch.testing.assert_close(error.double(), exact_error, rtol=0, atol=4e-6)
    assert not error.requires_grad


def test_products_check_their_arguments(make_autoencoder, make_images):
    model = make_autoencoder()
    with pytest.raises(ValueError, match="cotangent: expected the shape of x"):
        autoencoder_vjp(model, make_images(2, 1, 8, 8), make_images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        reconstruction_error_gradient(model, make_images(2, 1, 8, 6))
    with pytest.raises(ValueError, match="expected one of"):
        reconstruction_error_gradient(model, make_images(2, 1, 8, 8), backend="tpu")
