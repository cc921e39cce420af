"""Every operation of the chain in plain PyTorch: any floating dtype, any device, differentiable.

This is the file that the tests and the benchmarks compare the kernels with, and what runs where no kernel
can. Papers are cited by number: 000 Counterstrike (2018), 001 MALADE. Nothing here draws a seed by itself and
nothing touches torch's random generators.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
_MASK32 = 0xFFFFFFFF

# (stride, padding, output_padding, transposed) of the five convolutions of 000 Table 8, in order.
TABLE8_LAYERS = (
    (2, 2, 0, False),
    (2, 2, 0, False),
    (2, 4, 1, True),
    (2, 0, 1, True),
    (1, 2, 0, False),
)

Noise = Tensor | Callable[[int], Tensor] | None


def philox_words(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """Philox4x32-10 words (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Key = (seed low 32 bits, seed high 32 bits); counter = (element // 4, step, sample id low, sample id
    high).

    Args:
        seed: integer, 0 <= seed < 2**64, or int64 (1,) with its bits.
        sample_ids: int64 (B,), read as unsigned 64-bit.
        step: step of the chain, 0 <= step < 2**32.
        n_elements: elements of one sample (C x H x W), in that order.

    Returns:
        int64 (B, 4 * ceil(n_elements / 4)) on the device of ``sample_ids``, values in [0, 2**32).
    """
    blocks = (n_elements + 3) // 4
    device = sample_ids.device
    batch = sample_ids.shape[0]
    c0 = torch.arange(blocks, dtype=torch.int64, device=device).expand(batch, blocks)
    c1 = torch.full((1, 1), step, dtype=torch.int64, device=device)
    c2 = (sample_ids & _MASK32)[:, None]
    c3 = ((sample_ids >> 32) & _MASK32)[:, None]
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(PHILOX_ROUNDS):
        # The 64-bit products wrap around in int64, which leaves all 64 bits right; the mask after the
        # arithmetic shift removes the copies of the sign bit.
        p0 = c0 * PHILOX_MULTIPLIERS[0]
        p1 = c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0 = (k0 + PHILOX_KEY_INCREMENTS[0]) & _MASK32
        k1 = (k1 + PHILOX_KEY_INCREMENTS[1]) & _MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1).reshape(batch, 4 * blocks)


def standard_normal(
    seed: int | Tensor,
    sample_ids: Tensor,
    step: int,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Box-Muller normals of one step of the chain, computed in float64 and rounded once.

    u(w) = ((w >> 9) + 0.5) * 2**-23 lies strictly inside (0, 1) and is exact in float32. Of each four words,
    w0 and w2 give radii sqrt(-2 ln u), w1 and w3 give angles 2 pi u, in the order r0 cos, r0 sin, r2 cos,
    r2 sin.

    Args:
        seed, sample_ids, step: see :func:`philox_words`.
        shape: shape of one sample.
        dtype: floating dtype of the result.
        device: device of the result; by default that of ``sample_ids``.

    Returns:
        (B,) + shape tensor.
    """
    target = sample_ids.device if device is None else torch.device(device)
    n_elements = math.prod(shape)
    words = philox_words(seed, sample_ids.to(target), step, n_elements)
    uniforms = ((words >> 9).to(torch.float64) + 0.5) * 2.0**-23
    pairs = uniforms.reshape(sample_ids.shape[0], words.shape[1] // 2, 2)
    radius = torch.sqrt(-2.0 * torch.log(pairs[..., 0]))
    angle = (2.0 * math.pi) * pairs[..., 1]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    flat = normals.reshape(sample_ids.shape[0], words.shape[1])[:, :n_elements]
    return flat.to(dtype).reshape(sample_ids.shape[0], *shape)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, layer: tuple[int, int, int, bool]) -> Tensor:
    stride, padding, output_padding, transposed = layer
    if transposed:
        return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    return F.conv2d(x, weight, bias, stride, padding)


def autoencoder_activations(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Input and the five tanh outputs of the Table 8 autoencoder; the last entry is r(x)."""
    activations = [x]
    for index, layer in enumerate(TABLE8_LAYERS):
        activations.append(torch.tanh(_convolve(activations[-1], weights[2 * index], weights[2 * index + 1], layer)))
    return activations


def autoencoder_forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """r(x) of the autoencoder of 000 Table 8.

    Args:
        x: floating (B, C, H, W), H and W multiples of 4.
        weights: the ten tensors of ``Autoencoder.weights()`` in torch's own layouts, same dtype as ``x``.

    Returns:
        (B, C, H, W), each value in (-1, 1).
    """
    return autoencoder_activations(x, weights)[-1]


def autoencoder_vjp(
    cotangent: Tensor,
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    weight_gradients: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Vector-Jacobian product of the Table 8 autoencoder, written out.

    Written out instead of left to autograd because it also runs inside a registered operator, below the
    dispatcher's autograd layer, where nothing is recorded.

    Args:
        cotangent: (B, C, H, W), gradient with respect to r(x).
        activations: from :func:`autoencoder_activations`.
        weights: the ten tensors.
        weight_gradients: whether the gradients of the weights are wanted too.

    Returns:
        Gradient with respect to x (B, C, H, W), and ten weight gradients (an empty list if not wanted).
    """
    gradients: list[Tensor] = []
    for index in reversed(range(len(TABLE8_LAYERS))):
        stride, padding, output_padding, transposed = TABLE8_LAYERS[index]
        weight, bias = weights[2 * index], weights[2 * index + 1]
        output = activations[index + 1]
        cotangent = cotangent * (1.0 - output * output)
        cotangent, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            cotangent,
            activations[index],
            weight,
            [bias.shape[0]],
            [stride, stride],
            [padding, padding],
            [1, 1],
            transposed,
            [output_padding, output_padding],
            1,
            [True, weight_gradients, weight_gradients],
        )
        if weight_gradients:
            gradients[:0] = [weight_gradient, bias_gradient]
    return cotangent, gradients


def langevin_step(
    x: Tensor,
    reconstruction: Tensor,
    step_size: float,
    noise_scale: float = 0.0,
    z: Tensor | None = None,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """One step of MALA-approx: clamp(x + a (r(x) - x) + d z, low, high); 000 eq. 4 and 10, 001 eq. 10.

    The residual r(x) - x is sigma^2 times the score (000 eq. 6 and 9), so ``step_size`` is alpha / sigma^2 of
    the papers. There is no Metropolis rejection (000 footnote 1).

    Args:
        x: (B, C, H, W).
        reconstruction: r(x), same shape.
        step_size: a, multiplies the residual.
        noise_scale: d, standard deviation of the noise; 0 means that ``z`` is not read.
        z: standard normal noise of the same shape; needed unless ``noise_scale`` is 0.
        low, high: clamp bounds; infinite bounds clamp nothing. NaN passes through.

    Raises:
        ValueError: if ``noise_scale`` is not 0 and ``z`` is None.
    """
    v = x + step_size * (reconstruction - x)
    if noise_scale != 0.0:
        if z is None:
            raise ValueError(f"noise_scale is {noise_scale}: expected noise z, got None")
        v = v + noise_scale * z
    if low > -math.inf or high < math.inf:
        v = v.clamp(low, high)
    return v


def langevin_update(
    x: Tensor,
    reconstruction: Tensor,
    step_size: float,
    noise_scale: float,
    low: float,
    high: float,
    *,
    seed: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """:func:`langevin_step` that draws its noise: that of step ``step`` of a chain.

    Args:
        x, reconstruction, step_size, noise_scale, low, high: see :func:`langevin_step`.
        seed, sample_ids, step: the noise of :func:`standard_normal`; not read if ``noise`` is given or
            ``noise_scale`` is 0. ``sample_ids`` defaults to 0..B-1.
        noise: explicit (B, C, H, W) noise.

    Returns:
        (B, C, H, W).
    """
    z = noise
    if noise is None and noise_scale != 0.0:
        z = _drawn(seed, torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids, x, step)
    return langevin_step(x, reconstruction, step_size, noise_scale, z, low=low, high=high)


def _drawn(seed: int | Tensor, sample_ids: Tensor, like: Tensor, step: int) -> Tensor:
    return standard_normal(seed, sample_ids, step, like.shape[1:], dtype=like.dtype, device=like.device)


def langevin_chain(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    *,
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
    seed: int | Tensor | None = None,
    sample_ids: Tensor | None = None,
    noise: Noise = None,
    trajectory: bool = False,
) -> Tensor:
    """N steps of :func:`langevin_step`.

    Args:
        x: floating (B, C, H, W).
        autoencoder: any callable r, (B, C, H, W) -> (B, C, H, W).
        step_sizes, noise_scales: N floats each.
        lows, highs: N clamp bounds each; None means no clamp.
        seed, sample_ids: the noise of :func:`standard_normal`; not read if ``noise`` is given or every
            noise scale is 0. ``sample_ids`` defaults to 0..B-1.
        noise: (N, B, C, H, W) tensor, or a function of the step that returns (B, C, H, W).
        trajectory: return all states.

    Returns:
        (B, C, H, W), or (N + 1, B, C, H, W) with ``trajectory`` (entry 0 is ``x``).

    Raises:
        ValueError: if noise is needed and neither ``seed`` nor ``noise`` is given.
    """
    source = noise
    if noise is None and any(d != 0.0 for d in noise_scales):
        if seed is None:
            raise ValueError("the chain has noise: expected seed or noise, got neither")
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids
        source = functools.partial(_drawn, seed, ids, x)

    states = [x]
    for step, (a, d) in enumerate(zip(step_sizes, noise_scales, strict=True)):
        z = None
        if d != 0.0 and source is not None:
            z = source[step] if isinstance(source, Tensor) else source(step)
        low = -math.inf if lows is None else lows[step]
        high = math.inf if highs is None else highs[step]
        x = langevin_step(x, autoencoder(x), a, d, z, low=low, high=high)
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x
