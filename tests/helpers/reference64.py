"""The float64 reference of every test: autoencoder, chain and normals by their definitions, no code of the package.

In float32 the same functions use torch's convolutions: the tolerance rule compares an error with torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = list[Tensor]
UNBOUNDED = float("inf")


def random_weights(channels: int, hidden1: int, hidden2: int, seed: int = 0) -> Weights:
    """Ten float32 arrays in torch's layouts, scaled so that no tanh is saturated or near zero throughout."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    return [
        draw(hidden1, channels, 5, 5, scale=0.8 / (25 * channels) ** 0.5),
        draw(hidden1, scale=0.2),
        draw(hidden2, hidden1, 5, 5, scale=1.0 / (25 * hidden1) ** 0.5),
        draw(hidden2, scale=0.2),
        draw(hidden2, hidden1, 9, 9, scale=1.5 / (20 * hidden2) ** 0.5),
        draw(hidden1, scale=0.2),
        draw(hidden1, channels, 1, 1, scale=1.0 / hidden1**0.5),
        draw(channels, scale=0.5),
        draw(channels, channels, 5, 5, scale=1.0 / (9 * channels) ** 0.5),
        draw(channels, scale=0.3),
    ]


def _convolution(x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int) -> Tensor:
    """Every window times the taps: x (B, I, H, W), w (O, I, k, k), b (O,) -> (B, O, H', W')."""
    k = w.shape[-1]
    windows = F.pad(x, (padding,) * 4).unfold(2, k, stride).unfold(3, k, stride)
    return torch.einsum("bihwkl,oikl->bohw", windows, w) + b[:, None, None]


def _transposed(x: Tensor, w: Tensor, b: Tensor, stride: int, padding: int) -> Tensor:
    """Every input times the taps, added where windows meet: w (I, O, k, k), b (O,) -> (B, O, stride H, stride W)."""
    k, sides = w.shape[-1], [stride * side for side in x.shape[2:]]
    windows = torch.einsum("bihw,iokl->boklhw", x, w).flatten(1, 3).flatten(2)
    return F.fold(windows, sides, k, padding=padding, stride=stride) + b[:, None, None]


def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """r(x) in the dtype of x: by definition in float64, by torch's convolutions in float32."""
    w = [value.to(x.dtype) for value in weights]
    if x.dtype == torch.float64:
        x = torch.tanh(_convolution(x, w[0], w[1], stride=2, padding=2))
        x = torch.tanh(_convolution(x, w[2], w[3], stride=2, padding=2))
        x = torch.tanh(_transposed(x, w[4], w[5], stride=2, padding=4))
        x = torch.tanh(_transposed(x, w[6], w[7], stride=2, padding=0))
        return torch.tanh(_convolution(x, w[8], w[9], stride=1, padding=2))
    x = torch.tanh(F.conv2d(x, w[0], w[1], stride=2, padding=2))
    x = torch.tanh(F.conv2d(x, w[2], w[3], stride=2, padding=2))
    x = torch.tanh(F.conv_transpose2d(x, w[4], w[5], stride=2, padding=4, output_padding=1))
    x = torch.tanh(F.conv_transpose2d(x, w[6], w[7], stride=2, padding=0, output_padding=1))
    return torch.tanh(F.conv2d(x, w[8], w[9], stride=1, padding=2))


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    a: Sequence[float],
    d: Sequence[float],
    noise: Sequence[Tensor],
    low: float = -UNBOUNDED,
    high: float = UNBOUNDED,
) -> Tensor:
    """All states (N + 1, B, C, H, W) of the chain in the dtype of x, clamped at every step."""
    states = [x]
    for t in range(len(a)):
        x = x + a[t] * (forward(x, weights) - x) + d[t] * noise[t].to(x.dtype)
        x = x.clamp(low, high)
        states.append(x)
    return torch.stack(states)


Words = TypeVar("Words", int, np.ndarray)


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Philox4x32-10, in Python integers or in arrays of uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def philox_words(seed: int, sample_ids: Sequence[int], step: int, counters: int) -> np.ndarray:
    """(B, 4 counters) words of the blocks 0, 1, ... of each sample, in uint64."""
    ids = np.array([i % 2**64 for i in sample_ids], dtype=np.uint64)[:, None]
    block = np.broadcast_to(np.arange(counters, dtype=np.uint64), (len(ids), counters))
    words = philox((block, np.full_like(block, step), ids & 0xFFFFFFFF, ids >> 32), (seed % 2**32, seed >> 32))
    return np.stack(words, axis=-1).reshape(len(ids), 4 * counters)


def normals(seed: int, sample_ids: Sequence[int], step: int, n_elements: int) -> np.ndarray:
    """(B, n_elements) float64 deviates of Box and Muller from those words."""
    words = philox_words(seed, sample_ids, step, -(-n_elements // 4)).reshape(len(sample_ids), -1, 4)
    u = ((words >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    z = np.empty_like(u)
    for first in (0, 2):
        radius = np.sqrt(-2.0 * np.log(u[..., first]))
        # cos and sin of 2 pi u by quadrant, so that their zeros are exact relative to the argument.
        quarter = np.round(4.0 * u[..., first + 1])
        angle = (4.0 * u[..., first + 1] - quarter) * (np.pi / 2)
        q = quarter.astype(np.int64) % 4
        z[..., first] = radius * np.choose(q, [np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)])
        z[..., first + 1] = radius * np.choose(q, [np.sin(angle), np.cos(angle), -np.sin(angle), -np.cos(angle)])
    return z.reshape(len(sample_ids), -1)[:, :n_elements]


def ulp_error(value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|value - exact| in units in the last place of the float32 nearest to exact (normal numbers)."""
    unit = np.spacing(np.maximum(np.abs(exact), 2.0**-126).astype(np.float32)).astype(np.float64)
    return np.abs(value.astype(np.float64) - exact) / unit


def assert_within_rule(value: Tensor, single: Tensor, exact: Tensor, case: str = "") -> None:
    """The project's tolerance rule: error <= 2 x (torch float32's own error) + 1e-6, both against float64."""
    assert value.shape == single.shape == exact.shape
    own = (single.double() - exact).abs().max().item() if exact.numel() else 0.0
    error = (value.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= 2 * own + 1e-6, f"{case} expected error up to {2 * own + 1e-6:.3e}, got {error:.3e}"
