"""The WGAN-GP generator and critic of Defense-GAN for 28x28 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_counts


class GanGenerator(nn.Module):
    """Images from codes: Linear, then three transposed 5x5 convolutions with stride 2, ReLU between, sigmoid last.

    A code becomes a (4 w, 4, 4) map, then (2 w, 8, 8), cropped to (2 w, 7, 7), then (w, 14, 14), then (C, 28, 28).

    Args:
        latent_dim: length of a code; it is trained on standard normal codes.
        width: w. Gulrajani et al. and Samangouei et al. use 64.
        out_channels: channels C of the images.

    Raises:
        ValueError: a count that is not a positive integer.

    Source: Gulrajani et al. 2017, "Improved training of Wasserstein GANs" (MNIST model); Samangouei et al. 2018,
    "Defense-GAN", which uses the same one.
    """

    image_size = (28, 28)

    def __init__(self, latent_dim: int = 128, width: int = 64, out_channels: int = 1) -> None:
        super().__init__()
        check_counts(latent_dim=latent_dim, width=width, out_channels=out_channels)
        self.latent_dim, self.width, self.out_channels = latent_dim, width, out_channels
        self.linear = nn.Linear(latent_dim, 4 * width * 16)
        self.deconv1 = nn.ConvTranspose2d(4 * width, 2 * width, 5, stride=2, padding=2, output_padding=1)
        self.deconv2 = nn.ConvTranspose2d(2 * width, width, 5, stride=2, padding=2, output_padding=1)
        self.deconv3 = nn.ConvTranspose2d(width, out_channels, 5, stride=2, padding=2, output_padding=1)
        _he_initial(self)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, latent_dim) to images (B, C, 28, 28) in [0, 1]."""
        h = F.relu(self.linear(z)).reshape(-1, 4 * self.width, 4, 4)
        h = F.relu(self.deconv1(h))[:, :, :7, :7]
        h = F.relu(self.deconv2(h))
        return torch.sigmoid(self.deconv3(h))

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {"latent_dim": self.latent_dim, "width": self.width, "out_channels": self.out_channels}


class Critic(nn.Module):
    """Scores of images: three convolutions of 5x5 with stride 2, leaky ReLU (0.2) after each, then Linear.

    Args:
        width: channels after the first convolution; they double twice.
        in_channels: channels C of the images.

    Source: Gulrajani et al. 2017 (MNIST model). No batch normalisation, as the gradient penalty is per image.
    """

    def __init__(self, width: int = 64, in_channels: int = 1) -> None:
        super().__init__()
        check_counts(width=width, in_channels=in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 5, stride=2, padding=2)
        self.linear = nn.Linear(4 * width * 16, 1)
        _he_initial(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, 28, 28) to scores (B,)."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.leaky_relu(layer(x), 0.2)
        return self.linear(x.flatten(1))[:, 0]


def _he_initial(model: nn.Module) -> None:
    """He's normal initialisation with the fan-in that really reaches an output, zero biases: activations keep size."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                # With stride 2 only a quarter of the taps of each input channel reaches a given output.
                fan_in = layer.weight[:, 0].numel() // 4
            # On the meta device there is nothing to fill, and its normal_ takes a second to import.
            if not layer.weight.is_meta:
                nn.init.normal_(layer.weight, std=(2.0 / fan_in) ** 0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
