"""Small models and an independent numpy implementation of the Table 8 autoencoder and of the chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmalade import Autoencoder, ChainConfig, Purifier, backends

# (stride, padding, transposed) in the order of the layers; written again here, on purpose.
LAYERS = ((2, 2, False), (2, 2, False), (2, 4, True), (2, 0, True), (1, 2, False))


def _numpy_convolution(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Correlation by definition: x (B, I, H, W), w (O, I, k, k), b (O,) -> (B, O, H', W'), float64."""
    k = w.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    sides = [(n + 2 * padding - k) // stride + 1 for n in x.shape[2:]]
    out = np.zeros((x.shape[0], w.shape[0], *sides)) + b[None, :, None, None]
    for ky in range(k):
        for kx in range(k):
            rows = slice(ky, ky + stride * (sides[0] - 1) + 1, stride)
            columns = slice(kx, kx + stride * (sides[1] - 1) + 1, stride)
            out += np.einsum("bihw,oi->bohw", padded[:, :, rows, columns], w[:, :, ky, kx])
    return out


def _numpy_transposed(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """Scatter by definition: x (B, I, H, W), w (I, O, k, k) -> (B, O, stride H, stride W), float64."""
    k = w.shape[-1]
    height, width = (stride * n for n in x.shape[2:])
    full = np.zeros((x.shape[0], w.shape[1], height + k + 2 * padding, width + k + 2 * padding))
    for iy in range(x.shape[2]):
        for ix in range(x.shape[3]):
            patch = np.einsum("bi,iokl->bokl", x[:, :, iy, ix], w)
            full[:, :, stride * iy : stride * iy + k, stride * ix : stride * ix + k] += patch
    return full[:, :, padding : padding + height, padding : padding + width] + b[None, :, None, None]


def numpy_reconstruction(x: np.ndarray, weights: Sequence[Tensor]) -> np.ndarray:
    """r(x) in float64, sharing no code with the package."""
    arrays = [w.detach().double().numpy() for w in weights]
    for layer, (stride, padding, transposed) in enumerate(LAYERS):
        convolve = _numpy_transposed if transposed else _numpy_convolution
        x = np.tanh(convolve(x, arrays[2 * layer], arrays[2 * layer + 1], stride, padding))
    return x


def numpy_chain(
    x: np.ndarray,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    noise: np.ndarray,
    low: float = -math.inf,
    high: float = math.inf,
) -> np.ndarray:
    """The chain in float64, clamped after every step."""
    for a, d, z in zip(step_sizes, noise_scales, noise, strict=True):
        x = x + a * (numpy_reconstruction(x, weights) - x) + d * z
        x = np.minimum(np.maximum(x, low), high)
    return x


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny tensors on a busy machine: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reconstruct() -> Callable[..., np.ndarray]:
    return numpy_reconstruction


@pytest.fixture
def chain_by_definition() -> Callable[..., np.ndarray]:
    return numpy_chain


@pytest.fixture
def make_autoencoder() -> Callable[..., Autoencoder]:
    """Autoencoders with Xavier weights and non-zero biases, repeatable and without the global generator."""

    def make(
        channels: int = 1,
        hidden: tuple[int, int] = (10, 25),
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Autoencoder:
        generator = torch.Generator().manual_seed(seed)
        model = Autoencoder(channels, hidden, generator=generator)
        with torch.no_grad():
            for bias in model.weights()[1::2]:
                bias.uniform_(-0.2, 0.4, generator=generator)
        return model.to(dtype)

    return make


@pytest.fixture
def make_images() -> Callable[..., Tensor]:
    def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def purifier(make_autoencoder: Callable[..., Autoencoder]) -> Purifier:
    config = ChainConfig(n_steps=3, step_size=0.3, noise_scale=0.1, decay=0.5, offset=2.0)
    return Purifier(make_autoencoder().requires_grad_(False), config).eval()


@pytest.fixture(params=["torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = backends.available()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def _max_error(got: Tensor | np.ndarray, exact: Tensor | np.ndarray) -> float:
    as_double = [torch.as_tensor(v).detach().double() for v in (got, exact)]
    assert as_double[0].shape == as_double[1].shape
    return float((as_double[0] - as_double[1]).abs().max())


@pytest.fixture
def assert_within_rule() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Tolerance rule: error against float64 at most twice that of torch float32, plus 1e-6."""

    def check(got: Tensor, in_float32: Tensor, exact: Tensor) -> None:
        bound = 2 * _max_error(in_float32, exact) + 1e-6
        error = _max_error(got, exact)
        assert error <= bound, f"error {error:.3g} above {bound:.3g}"

    return check
