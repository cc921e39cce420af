"""Products with the Jacobian of one reconstruction: what attacks and purifiers other than the chain are built of."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastmalade import backends
from fastmalade.chain.call import model_on_gpu
from fastmalade.models import Autoencoder
from fastmalade.models.table8 import is_native_autoencoder


def autoencoder_vjp(
    autoencoder: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor, *, backend: str | None = None
) -> Tensor:
    """J_r(x)^T cotangent: the vector-Jacobian product of r at x.

    Args:
        autoencoder: r, (B, C, H, W) -> (B, C, H, W). A Table 8 :class:`fastmalade.Autoencoder` goes through the
            native kernels where the "cpu" or the "cuda" backend serves, anything else through torch's autograd.
        x: floating (B, C, H, W), dtype and device of the autoencoder.
        cotangent: (B, C, H, W), gradient of something with respect to r(x); dtype and device of ``x``.
        backend: as for :func:`fastmalade.langevin_chain`.

    Returns:
        (B, C, H, W), without gradient of its own.

    Raises:
        ValueError, BackendUnavailableError: a shape that does not fit; a backend that cannot run this.
    """
    if cotangent.shape != x.shape:
        raise ValueError(f"cotangent: expected the shape of x {tuple(x.shape)}, got {tuple(cotangent.shape)}")
    native = _native(autoencoder, x, backend)
    if native is not None:
        module, weights = native
        product: Tensor = module.autoencoder_vjp(cotangent, x, weights)
        return product
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        reconstruction = autoencoder(leaf)
    (product,) = torch.autograd.grad(reconstruction, leaf, cotangent)
    return product


def reconstruct(autoencoder: Callable[[Tensor], Tensor], x: Tensor, *, backend: str | None = None) -> Tensor:
    """r(x) by the kernels where they serve, without gradient: arguments and errors as :func:`autoencoder_vjp`."""
    native = _native(autoencoder, x, backend)
    if native is not None:
        module, weights = native
        reconstruction: Tensor = module.autoencoder_forward(x, weights)
        return reconstruction
    with torch.no_grad():
        return autoencoder(x)


def reconstruction_error_gradient(
    autoencoder: Callable[[Tensor], Tensor], x: Tensor, *, backend: str | None = None
) -> Tensor:
    """Gradient of ||x - r(x)||^2, summed over pixels, with respect to x and through r: the step of APuDAE (003 eq. 8).

    Arguments, result and errors are those of :func:`autoencoder_vjp`.
    """
    native = _native(autoencoder, x, backend)
    if native is not None:
        module, weights = native
        result: Tensor = module.reconstruction_error_gradient(x, weights)
        return result
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        error = (leaf - autoencoder(leaf)).square().sum()
    (gradient,) = torch.autograd.grad(error, leaf)
    return gradient


def _native(
    autoencoder: Callable[[Tensor], Tensor], x: Tensor, backend: str | None
) -> tuple[ModuleType, tuple[Tensor, ...]] | None:
    """The backend's module and the ten weights where native kernels serve this call, else None."""
    if not is_native_autoencoder(autoencoder):
        backends.resolve(backend, device=x.device, dtype=x.dtype)  # refuses what cannot be had
        return None
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.check_shape(x.shape)
    name = backends.resolve(backend, device=x.device, dtype=x.dtype, model=model_on_gpu(x, autoencoder))
    module = backends.native(name)
    # Triton has the chain and its gradient only.
    return None if module is None or name == "triton" else (module, autoencoder.weights())
