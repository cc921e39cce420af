"""The variational autoencoder whose decoder is the generator of INC on MNIST (paper 004, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_counts


class VaeDecoder(nn.Module):
    """Images from codes: two hidden linear layers, softplus after each, sigmoid last.

    Args:
        latent_dim: length of a code, 20 in the paper.
        hidden: units of the hidden layers, 500 in the paper.
        image_shape: (C, H, W).

    Raises:
        ValueError: a count that is not a positive integer.

    Source: paper 004, section 4.1, which gives the sizes; the activations are those of the code that it refers to.
    """

    def __init__(self, latent_dim: int = 20, hidden: int = 500, image_shape: Sequence[int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, height, width = image_shape
        check_counts(latent_dim=latent_dim, hidden=hidden, channels=channels, height=height, width=width)
        self.latent_dim, self.hidden = latent_dim, hidden
        self.image_shape = (channels, height, width)
        self.linear1 = nn.Linear(latent_dim, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, channels * height * width)

    @property
    def out_channels(self) -> int:
        """C of the images."""
        return self.image_shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.image_shape[1:]

    def logits(self, z: Tensor) -> Tensor:
        """Codes (B, latent_dim) to the logits (B, C, H, W) of Bernoulli pixels."""
        h = F.softplus(self.linear2(F.softplus(self.linear1(z))))
        return self.linear3(h).reshape(-1, *self.image_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, latent_dim) to images (B, C, H, W) in [0, 1]."""
        return torch.sigmoid(self.logits(z))

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {"latent_dim": self.latent_dim, "hidden": self.hidden, "image_shape": list(self.image_shape)}


class VaeEncoder(nn.Module):
    """Mean and log variance of the code of an image; arguments, errors and source as for :class:`VaeDecoder`."""

    def __init__(self, latent_dim: int = 20, hidden: int = 500, image_shape: Sequence[int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, height, width = image_shape
        check_counts(latent_dim=latent_dim, hidden=hidden, channels=channels, height=height, width=width)
        self.latent_dim, self.hidden = latent_dim, hidden
        self.image_shape = (channels, height, width)
        self.linear1 = nn.Linear(channels * height * width, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] to (mean, log variance), each (B, latent_dim)."""
        h = F.softplus(self.linear2(F.softplus(self.linear1(x.flatten(1)))))
        mean, log_variance = self.linear3(h).chunk(2, dim=1)
        return mean, log_variance

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {"latent_dim": self.latent_dim, "hidden": self.hidden, "image_shape": list(self.image_shape)}
