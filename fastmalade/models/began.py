"""The BEGAN for 64x64 images whose generator is that of INC on CelebA (paper 004, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_counts

_LEVELS = 4
_SIDE = 8


class BeganGenerator(nn.Module):
    """Images from codes: Linear to an (w, 8, 8) map, then 3x3 convolutions at 8, 16, 32 and 64 pixels, ELU after each.

    Between two sizes each pixel is repeated 2x2; a last 3x3 convolution gives the colours. The code that the paper
    refers to leaves them unbounded and clips them. Here a sigmoid bounds them, because a clipped pixel has no gradient
    that could move the code.

    Args:
        latent_dim: length of a code, 128 in the paper, drawn from N(0, 4 I): a search starts at ``code_scale=2``.
        width: w, 128 in the paper.
        out_channels: channels C of the images.
        depth: convolutions at each size. Paper 004 lists four before the last, one at each size; Berthelot et al.
            use 2.

    Raises:
        ValueError: a count that is not a positive integer.

    Source: paper 004, section 4.1; Berthelot et al. 2017, "BEGAN: Boundary equilibrium generative adversarial
    networks".
    """

    image_size = (64, 64)

    def __init__(self, latent_dim: int = 128, width: int = 128, out_channels: int = 3, depth: int = 1) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, width=width, out_channels=out_channels, depth=depth)
        self.latent_dim, self.width, self.out_channels, self.depth = latent_dim, width, out_channels, depth
        self.decoder = _Decoder(latent_dim, width, out_channels, depth)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, latent_dim) to images (B, C, 64, 64) in [0, 1]."""
        return torch.sigmoid(self.decoder(z))

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {
            "latent_dim": self.latent_dim,
            "width": self.width,
            "out_channels": self.out_channels,
            "depth": self.depth,
        }


class BeganDiscriminator(nn.Module):
    """An autoencoder D whose reconstruction error is the score of an image; its decoder is built like the generator.

    The encoder has k w channels at the k-th size, starting at 64 pixels, and a convolution of stride 2 between sizes.

    Args: as for :class:`BeganGenerator`.

    Source: Berthelot et al. 2017, figure 1.
    """

    def __init__(self, latent_dim: int = 128, width: int = 128, in_channels: int = 3, depth: int = 1) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, width=width, in_channels=in_channels, depth=depth)
        layers: list[nn.Module] = [_conv(in_channels, width)]
        channels = width
        for level in range(1, _LEVELS + 1):
            if level > 1:
                layers.append(_conv(channels, channels, stride=2))
            for _ in range(depth):
                layers.append(_conv(channels, level * width))
                channels = level * width
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * _SIDE**2, latent_dim))
        self.decoder = _Decoder(latent_dim, width, in_channels, depth)

    def forward(self, x: Tensor) -> Tensor:
        """Images x, (B, C, 64, 64) in [0, 1], to L(v) = mean over pixels of |D(v) - v|, (B,), where v = 2x - 1."""
        centred = 2 * x - 1
        return (self.decoder(self.encoder(centred)) - centred).abs().flatten(1).mean(1)


class _Decoder(nn.Module):
    """Codes (B, latent_dim) to unbounded images (B, C, 64, 64)."""

    def __init__(self, latent_dim: int, width: int, channels: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(latent_dim, width * _SIDE**2)
        self.levels = nn.ModuleList(nn.Sequential(*(_conv(width, width) for _ in range(depth))) for _ in range(_LEVELS))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.linear(z).reshape(-1, self.width, _SIDE, _SIDE)
        for k, level in enumerate(self.levels):
            h = level(h if k == 0 else F.interpolate(h, scale_factor=2, mode="nearest"))
        return self.last(h)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), nn.ELU())
