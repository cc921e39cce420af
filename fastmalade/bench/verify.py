"""Before anything is timed: does a contender compute the chain, with noise that is normal, fresh and independent?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from fastmalade import reference
from fastmalade.bench.contenders import Chain, Contender
from fastmalade.bench.task import HIGH, LOW, Task, differentiable_chain, expected

CHECKED_IMAGES = 32
NOISE_SAMPLES = 50_000
NOISE_STD = 0.05
SIGMAS = 6.0
# Gradients are relative to their norm; one pixel on the other side of the clamp would change them by per cents.
CLAMP_MARGIN = 1e-4
GRADIENT_TOLERANCE = 1e-3


class VerificationError(Exception):
    """A contender does not compute what it should; the message says what was expected and what came."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        error: largest difference of the noiseless result from float64 (of gradients: relative to their norm).
        allowed: what it may be.
        noise: ratios of measured to expected variance, by what was varied; empty for gradients.
    """

    error: float
    allowed: float
    noise: dict[str, float]


def verify(contender: Contender, form: str, task: Task, images: np.ndarray) -> Verification:
    """Check one form of a contender on the batch that it will be timed on.

    Without noise its result must agree with the float64 reference: the native chain within twice the error of torch
    float32 plus 1e-6, a peer within 1e-4 more than that. With the drift switched off, what it adds to a grey image must
    have mean 0 and the variances of independent noise: over the pixels, between successive calls and between
    neighbouring images of a batch, each within six standard errors. N steps that used the same noise twice would
    show in the first.

    Args:
        contender, form: what to check.
        task: what it is to compute.
        images: float32 (B, C, H, W) in [0, 1].

    Raises:
        VerificationError: one of these does not hold.
    """
    checked = images[:CHECKED_IMAGES]
    exact = expected(task, checked, torch.float64)
    torch_error = float((expected(task, checked, torch.float32) - exact).abs().max())
    allowed = 2 * torch_error + 1e-6 + (contender.tolerance if contender.is_peer else 0.0)
    result = _result(contender.prepare(task.noiseless(), form), images)
    error = float(np.abs(result[: len(checked)] - exact.numpy()).max())
    if not error <= allowed:
        raise VerificationError(f"noiseless result: expected within {allowed:.1e} of float64, got {error:.1e}")
    scale = NOISE_STD / math.sqrt(task.n_steps)
    return Verification(error, allowed, check_noise(contender.prepare(task.noise_only(scale), form), images))


def check_noise(chain: Chain, images: np.ndarray) -> dict[str, float]:
    """Ratios of the variances of what ``chain`` adds to a grey image of this shape, which should be 1.

    Raises:
        VerificationError: one of them, or the mean, is off by more than six standard errors.
    """
    grey = np.full_like(images, (LOW + HIGH) / 2)
    calls = max(2, math.ceil(NOISE_SAMPLES / images.size))
    noise = np.stack([_result(chain, grey) - grey for _ in range(calls)]).astype(np.float64)
    noise /= NOISE_STD
    mean = float(noise.mean())
    if not abs(mean) <= SIGMAS / math.sqrt(noise.size):
        raise VerificationError(f"noise: expected mean 0, got {mean:.4f} standard deviations")
    samples = {"pixels": noise, "calls": (noise[1:] - noise[:-1]) / math.sqrt(2)}
    if noise.shape[1] > 1:
        samples["images"] = (noise[:, 1:] - noise[:, :-1]) / math.sqrt(2)
    ratios = {name: float((values**2).mean()) for name, values in samples.items()}
    for name, ratio in ratios.items():
        # Differences of neighbours share samples, which makes their mean square less certain by sqrt(3/2).
        margin = SIGMAS * math.sqrt(3 / samples[name].size)
        if not abs(ratio - 1) <= margin:
            raise VerificationError(
                f"noise over {name}: expected {1 - margin:.3f} to {1 + margin:.3f} times the variance of "
                f"{images.shape[1:]} independent normals per step, got {ratio:.3f}"
            )
    return ratios


def verify_gradient(
    contender: Contender, form: str, task: Task, images: np.ndarray, cotangent: np.ndarray
) -> Verification:
    """As :func:`verify` for the gradient of <cotangent, chain(images)>, without noise, by the relative error.

    ``cotangent`` should be zero where the result lies on the clamp: see :func:`make_cotangent`.
    """
    checked = images[:CHECKED_IMAGES]

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        x = torch.from_numpy(checked).to(dtype).requires_grad_()
        seed = torch.from_numpy(cotangent[:CHECKED_IMAGES]).to(dtype)
        return torch.autograd.grad(differentiable_chain(task.noiseless(), x), x, seed)[0].double()

    exact = gradient(torch.float64)
    norm = float(exact.norm())
    torch_error = float((gradient(torch.float32) - exact).norm()) / norm
    allowed = 2 * torch_error + 1e-6 + (GRADIENT_TOLERANCE if contender.is_peer else 0.0)
    result = _result(contender.prepare_gradient(task.noiseless(), form, cotangent), images)
    error = float(np.linalg.norm(result[: len(checked)] - exact.numpy())) / norm
    if not error <= allowed:
        raise VerificationError(f"gradient: expected within {allowed:.1e} of float64, relative, got {error:.1e}")
    return Verification(error, allowed, {})


def make_cotangent(task: Task, images: np.ndarray) -> np.ndarray:
    """Normal float32 (B, C, H, W), zero where the noiseless result is so near the clamp that rounding decides."""
    weights = task.weights
    unclamped = reference.langevin_chain(
        torch.from_numpy(images),
        lambda state: reference.autoencoder_forward(state, weights),
        task.step_sizes,
        task.noiseless().noise_scales,
    ).numpy()
    cotangent = np.random.default_rng(1).standard_normal(images.shape, dtype=np.float32)
    cotangent[(np.abs(unclamped - LOW) < CLAMP_MARGIN) | (np.abs(unclamped - HIGH) < CLAMP_MARGIN)] = 0
    return cotangent


def _result(chain: Chain, images: np.ndarray) -> np.ndarray:
    before = images.copy()
    result = np.array(chain(images))
    if result.shape != images.shape or result.dtype != np.float32:
        raise VerificationError(f"result: expected float32 {images.shape}, got {result.dtype} {result.shape}")
    if not np.array_equal(images, before):
        raise VerificationError("expected the input to be left alone, got it written to")
    return result
