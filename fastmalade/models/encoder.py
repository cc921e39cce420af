"""A convolutional encoder, which an attacker trains to replace the search for a generator's code."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_counts


class ConvEncoder(nn.Module):
    """Codes of images: three convolutions of 5x5 with stride 2, leaky ReLU (0.2) after each, then Linear.

    Paper 004 only says "a convolutional neural network"; this one has the shape of Defense-GAN's critic.

    Args:
        latent_dim: length of a code.
        width: channels after the first convolution; they double twice.
        image_shape: (C, H, W).

    Raises:
        ValueError: a count that is not a positive integer.
    """

    def __init__(self, latent_dim: int, width: int = 32, image_shape: Sequence[int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        check_counts(latent_dim=latent_dim, width=width, channels=channels, height=height, image_width=image_width)
        self.latent_dim, self.width, self.image_shape = latent_dim, width, (channels, height, image_width)
        self.conv1 = nn.Conv2d(channels, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 5, stride=2, padding=2)
        # Stride 2 with this padding halves each side, rounding up; three layers leave an eighth.
        self.linear = nn.Linear(4 * width * -(-height // 8) * -(-image_width // 8), latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to codes (B, latent_dim)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.leaky_relu(layer(x), 0.2)
        return self.linear(x.flatten(1))
