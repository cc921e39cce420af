"""The denoising autoencoder of APuDAE, with skip connections (paper 003, Table 1 and eq. 6)."""

from __future__ import annotations

from torch import Tensor, nn

from fastmalade.checks import check_counts


class SkipDenoiser(nn.Module):
    """r(x): one convolution of stride 2 and depth - 1 of stride 1, mirrored by transposed ones; 3x3, ReLU, batch norm.

    The output of each encoder layer is added to the input of the decoder layer that mirrors the layer after it. Eq. 6
    would also add the image itself to the last output; under a sigmoid that makes no sense, and it is left out. The
    paper mentions dropout without a rate; there is none here.

    Args:
        in_channels: channels C of the images.
        width: channels of the layers between, 64 in the paper.
        depth: N, the layers of each half: 5 for MNIST, 15 for CIFAR-10 in the paper.

    Raises:
        ValueError: a count that is not a positive integer.

    Source: paper 003, Table 1 and eq. 6.
    """

    def __init__(self, in_channels: int = 1, width: int = 64, depth: int = 5) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, width=width, depth=depth)
        self.in_channels, self.width, self.depth = in_channels, width, depth
        self.encoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width if k else in_channels, width, 3, stride=1 if k else 2, padding=1),
                nn.ReLU(),
                _batch_norm(width),
            )
            for k in range(depth)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(width, width, 3, padding=1), nn.ReLU(), _batch_norm(width))
            for _ in range(depth - 1)
        )
        self.last = nn.Sequential(
            nn.ConvTranspose2d(width, in_channels, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], H and W even, to reconstructions of the same shape in [0, 1].

        Raises:
            ValueError: a shape that does not fit.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W) with H and W even, got {tuple(x.shape)}"
            )
        features = []
        for layer in self.encoder:
            x = layer(x)
            features.append(x)
        for layer, skip in zip(self.decoder, features[-2::-1], strict=True):
            x = layer(x) + skip
        return self.last(x)

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {"in_channels": self.in_channels, "width": self.width, "depth": self.depth}


def _batch_norm(width: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(width)
    # This count only matters without momentum, and it is the one buffer that a file of float tensors could not hold.
    layer.num_batches_tracked = None
    return layer
