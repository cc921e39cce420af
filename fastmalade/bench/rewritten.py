"""The Table 8 autoencoder rewritten by hand into convolutions that libraries are good at.

An expert who wants another library to be fast may use the same algebra as the native kernels. The 9x9 transposed
convolution with stride 2 is a 5x5 convolution to four times the channels, then a depth-to-space shuffle. The 1x1
transposed convolution is a 1x1 convolution at the even positions. The last convolution, whose input is the constant
tanh(bias) at the other positions, is a 3x3 convolution at half the resolution, a shuffle, and the addition of a
constant image. Contenders "...-rewritten" run this graph, which is the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class RewrittenWeights:
    """Arrays of the rewritten graph, all float32.

    Attributes:
        conv1, bias1: (h1, C, 5, 5), (h1,); stride 2, padding 2, then tanh.
        conv2, bias2: (h2, h1, 5, 5), (h2,); stride 2, padding 2, then tanh.
        up1, up_bias1: (4 h1, h2, 5, 5), (4 h1,); padding 2, then depth-to-space (channel-major), then tanh.
        point, point_bias: (C, h1, 1, 1), (C,); then tanh.
        up2: (4 C, C, 3, 3), no bias; padding 1, then depth-to-space, plus ``constant``, then tanh.
        constant: (C, H, W), the bias of the last convolution and its taps on the constant positions.
    """

    conv1: np.ndarray
    bias1: np.ndarray
    conv2: np.ndarray
    bias2: np.ndarray
    up1: np.ndarray
    up_bias1: np.ndarray
    point: np.ndarray
    point_bias: np.ndarray
    up2: np.ndarray
    constant: np.ndarray


def rewrite(weights: Sequence[Tensor], height: int, width: int) -> RewrittenWeights:
    """The ten tensors of ``Autoencoder.weights()`` as weights of the rewritten graph for images (C, height, width)."""
    w = [weight.detach().numpy() for weight in weights]
    h1, channels = w[4].shape[1], w[8].shape[0]
    return RewrittenWeights(
        conv1=w[0],
        bias1=w[1],
        conv2=w[2],
        bias2=w[3],
        up1=_subpixel(w[4].transpose(1, 0, 2, 3), padding=4, reach=2, flipped=True).reshape(4 * h1, -1, 5, 5),
        up_bias1=np.repeat(w[5], 4),
        point=np.ascontiguousarray(w[6].transpose(1, 0, 2, 3)),
        point_bias=w[7],
        up2=_subpixel(w[8], padding=2, reach=1, flipped=False).reshape(4 * channels, -1, 3, 3),
        constant=_constant_image(w[7], w[8], w[9], height, width),
    )


def forward_function(r: RewrittenWeights) -> Callable[[Tensor], Tensor]:
    """r(x) by the rewritten graph in torch, a function (B, C, H, W) -> (B, C, H, W) of float32."""
    conv1, bias1, conv2, bias2, up1, up_bias1, point, point_bias, up2, constant = (
        torch.from_numpy(getattr(r, field.name)) for field in dataclasses.fields(r)
    )

    def forward(x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, conv1, bias1, 2, 2))
        x = torch.tanh(F.conv2d(x, conv2, bias2, 2, 2))
        x = torch.tanh(F.pixel_shuffle(F.conv2d(x, up1, up_bias1, 1, 2), 2))
        x = torch.tanh(F.conv2d(x, point, point_bias))
        return torch.tanh(F.pixel_shuffle(F.conv2d(x, up2, None, 1, 1), 2) + constant)

    return forward


def _subpixel(weight: np.ndarray, *, padding: int, reach: int, flipped: bool) -> np.ndarray:
    """Split a kernel (O, I, K, K) over an input of zeros between samples into four phases (O, 4, I, k, k).

    Output 2 i + phase reads sample i + shift, |shift| <= reach, through one tap of every other. ``flipped``: the
    kernel is that of a transposed convolution, whose taps run against the samples.
    """
    out_channels, in_channels, size, _ = weight.shape
    result = np.zeros((out_channels, 4, in_channels, 2 * reach + 1, 2 * reach + 1), np.float32)
    pairs = [
        (phase, shift, padding + phase - 2 * shift if flipped else padding - phase + 2 * shift)
        for phase in (0, 1)
        for shift in range(-reach, reach + 1)
    ]
    for row_phase, row, ky in pairs:
        for column_phase, column, kx in pairs:
            if 0 <= ky < size and 0 <= kx < size:
                result[:, 2 * row_phase + column_phase, :, row + reach, column + reach] = weight[:, :, ky, kx]
    return result


def _constant_image(
    point_bias: np.ndarray, conv3: np.ndarray, bias3: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Last convolution of an image that is tanh(bias) at odd rows or columns and zero elsewhere, (C, H, W)."""
    image = np.tanh(point_bias.astype(np.float64))[:, None, None] * np.ones((1, height, width))
    image[:, ::2, ::2] = 0
    result = F.conv2d(
        torch.from_numpy(image)[None], torch.from_numpy(conv3).double(), torch.from_numpy(bias3).double(), padding=2
    )
    return result[0].float().numpy()
