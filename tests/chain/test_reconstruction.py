"""Products with the Jacobian of one reconstruction, through the kernels and through autograd."""

from __future__ import annotations

import pytest
import torch

from fastmalade import autoencoder_vjp, backends, reconstruction_error_gradient
from fastmalade.chain.reconstruction import reconstruct


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


def test_a_model_that_fits_the_chip_of_a_gpu_goes_through_its_kernels(make_autoencoder, make_images, monkeypatch):
    model, x = make_autoencoder(), make_images(2, 1, 8, 8)
    asked = []

    def resolve(requested, **facts):
        asked.append((requested, facts.get("model")))
        return requested

    monkeypatch.setattr(backends, "resolve", resolve)
    for name in ("autoencoder_vjp", "autoencoder_forward", "reconstruction_error_gradient"):
        monkeypatch.setattr(backends.cuda.calls, name, lambda *arguments, name=name: (name, *arguments))
    weights = model.weights()
    assert autoencoder_vjp(model, x, -x, backend="cuda")[0] == "autoencoder_vjp"
    assert reconstruct(model, x, backend="cuda") == ("autoencoder_forward", x, weights)
    assert reconstruction_error_gradient(model, x, backend="cuda") == ("reconstruction_error_gradient", x, weights)
    # Triton has no such product: torch computes it. What has to fit is told on a GPU only.
    product = autoencoder_vjp(model, x, -x, backend="triton")
    assert torch.equal(product, autoencoder_vjp(model, x, -x, backend="torch"))
    assert {size for _, size in asked} == {None}


def test_products_check_their_arguments(make_autoencoder, make_images):
    model = make_autoencoder()
    with pytest.raises(ValueError, match="cotangent: expected the shape of x"):
        autoencoder_vjp(model, make_images(2, 1, 8, 8), make_images(1, 1, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        reconstruction_error_gradient(model, make_images(2, 1, 8, 6))
    with pytest.raises(ValueError, match="expected one of"):
        reconstruction_error_gradient(model, make_images(2, 1, 8, 8), backend="tpu")
