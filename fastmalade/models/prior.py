"""The untrained generator of the deep image prior, with a set of weights for each image of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_counts

_SLOPE = 0.2
_EPSILON = 1e-5


class PriorNetwork(nn.Module):
    """An hourglass with skip connections. The module has no parameters: they are an argument of ``forward``.

    Each scale halves the map with a 3x3 convolution of stride 2 and another 3x3 one; a 1x1 convolution makes the skip.
    On the way up the skip is concatenated with the bilinearly enlarged map below, normalised, and passed through a 3x3
    and a 1x1 convolution. Every convolution but the last is followed by normalisation and leaky ReLU (0.2), the last by
    a sigmoid; the 3x3 ones pad by reflection. Normalisation is over the pixels of an image, which is what batch
    normalisation does in Ulyanov et al., who fit one image at a time. Biases that it would cancel are left out.

    All images of a batch go through grouped convolutions, one group for each image, without a loop.

    Args:
        out_channels: channels C of the images.
        code_channels: channels of the fixed code.
        widths: channels at each scale. Ulyanov et al. use (128,) * 5 for denoising.
        skip: channels of the skip connections; Ulyanov et al. use 4.

    Raises:
        ValueError: a count that is not a positive integer, or no scale.

    Source: Ulyanov et al. 2018, "Deep image prior", supplementary material; paper 004, section 4.1.
    """

    def __init__(
        self, out_channels: int = 1, code_channels: int = 8, widths: Sequence[int] = (16, 32, 32), skip: int = 4
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths: expected at least one scale, got none")
        check_counts(out_channels=out_channels, code_channels=code_channels, skip=skip)
        check_counts(**{f"widths[{k}]": width for k, width in enumerate(widths)})
        self.out_channels, self.code_channels, self.skip = out_channels, code_channels, skip
        self.widths = tuple(widths)
        self._shapes = list(self._parameter_shapes())

    @property
    def parameter_count(self) -> int:
        """P, the number of parameters for one image."""
        return sum(math.prod(shape) for shape in self._shapes)

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the code for images of height x width: each side a multiple of 2^scales, and at least twice that."""
        unit = 2 ** len(self.widths)
        # Padding by reflection needs two pixels at the smallest scale.
        return (max(2 * unit, -(-height // unit) * unit), max(2 * unit, -(-width // unit) * unit))

    def initial(self, normals: Tensor) -> Tensor:
        """Parameters before training, (B, P), from standard normals (B, P).

        Weights have the variance of torch's default, 1 / (3 fan_in); scales are 1, shifts and biases 0.
        """
        parts, place = [], 0
        for shape in self._shapes:
            size = math.prod(shape)
            part = normals[:, place : place + size]
            if len(shape) == 4:
                parts.append(part / math.sqrt(3 * math.prod(shape[1:])))
            else:
                parts.append(torch.full_like(part, 1.0 if len(shape) == 2 else 0.0))
            place += size
        return torch.cat(parts, dim=1)

    def forward(self, parameters: Tensor, code: Tensor) -> Tensor:
        """The images that these parameters make of the codes.

        Args:
            parameters: (B, P), a row for each image.
            code: (B, code_channels, h, w), with the sides that :meth:`code_size` gives.

        Returns:
            (B, C, h, w) in [0, 1].
        """
        rows = len(parameters)
        sizes = [math.prod(shape) for shape in self._shapes]
        given = iter(
            part.reshape(rows, *shape) for part, shape in zip(parameters.split(sizes, dim=1), self._shapes, strict=True)
        )
        skips, h = [], code
        for _ in self.widths:
            skips.append(_layer(h, given))
            h = _layer(_layer(h, given, stride=2), given)
        for skip in reversed(skips):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = _normalised(torch.cat([skip, h], dim=1), next(given), next(given))
            h = _layer(_layer(h, given), given)
        weight, bias = next(given), next(given)
        return torch.sigmoid(_grouped(h, weight) + bias.reshape(rows, self.out_channels, 1, 1))

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {
            "out_channels": self.out_channels,
            "code_channels": self.code_channels,
            "widths": list(self.widths),
            "skip": self.skip,
        }

    def _parameter_shapes(self) -> Iterator[tuple[int, ...]]:
        """Shapes in the order of use: weights have four sizes, scales (n, 1), shifts and the last bias (n,)."""

        def layer(outputs: int, inputs: int, side: int) -> Iterator[tuple[int, ...]]:
            yield (outputs, inputs, side, side)
            yield from norm(outputs)

        def norm(count: int) -> Iterator[tuple[int, ...]]:
            yield (count, 1)
            yield (count,)

        before = self.code_channels
        for width in self.widths:
            yield from layer(self.skip, before, 1)
            yield from layer(width, before, 3)
            yield from layer(width, width, 3)
            before = width
        for width in reversed(self.widths):
            yield from norm(self.skip + before)
            yield from layer(width, self.skip + before, 3)
            yield from layer(width, width, 1)
            before = width
        yield (self.out_channels, before, 1, 1)
        yield (self.out_channels,)


def _layer(h: Tensor, given: Iterator[Tensor], stride: int = 1) -> Tensor:
    weight, scale, shift = next(given), next(given), next(given)
    return F.leaky_relu(_normalised(_grouped(h, weight, stride), scale, shift), _SLOPE)


def _grouped(h: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolution of h (B, I, H, W) with a separate weight for each image, (B, O, I, k, k), to (B, O, H', W')."""
    rows, outputs, inputs, side, _ = weight.shape
    if side > 1:
        h = F.pad(h, (side // 2,) * 4, mode="reflect")
    merged = h.reshape(1, rows * inputs, *h.shape[2:])
    result = F.conv2d(merged, weight.reshape(rows * outputs, inputs, side, side), stride=stride, groups=rows)
    return result.reshape(rows, outputs, *result.shape[2:])


def _normalised(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Zero mean and unit variance over the pixels of each channel of h (B, O, H, W); scale (B, O, 1), shift (B, O)."""
    variance, mean = torch.var_mean(h, dim=(2, 3), correction=0, keepdim=True)
    return (h - mean) * torch.rsqrt(variance + _EPSILON) * scale[..., None] + shift[..., None, None]
