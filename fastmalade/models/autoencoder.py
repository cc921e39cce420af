"""The small convolutional autoencoder r(x) of the DAE and the sDAE (paper 000, Table 8; 001, Table 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_TANH_GAIN = 5.0 / 3.0


class Autoencoder(nn.Module):
    """Reconstruction function r: images -> images of the same shape.

    Five layers, a tanh after each, all with SAME padding::

        Conv(h1, 5x5, stride 2)  Conv(h2, 5x5, stride 2)
        ConvTranspose(h1, 9x9, stride 2)  ConvTranspose(C, 1x1, stride 2)  Conv(C, 5x5, stride 1)

    The 1x1 transposed convolution with stride 2 gives a constant, tanh(bias), in every odd row and column; the native
    kernels make use of that. Weights start from Xavier's uniform distribution with the gain of tanh, biases from zero:
    from PyTorch's default the network never learns more than a constant image.

    Args:
        in_channels: channels C of the images, 1 or more.
        hidden_channels: (h1, h2), the channels after the first and the second convolution; the paper's are (10, 25).
        generator: draws the initial parameters; torch's global generator when None.

    Raises:
        ValueError: a channel count that is not a positive integer, or not exactly two hidden counts.

    Source: paper 000, Table 8.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: Sequence[int] = (10, 25),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(hidden_channels) != 2:
            raise ValueError(f"hidden_channels: expected two channel counts, got {tuple(hidden_channels)}")
        for name, count in (("in_channels", in_channels), *(("hidden_channels", h) for h in hidden_channels)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name}: expected a positive integer, got {count!r}")
        self.in_channels = in_channels
        self.hidden_channels = (hidden_channels[0], hidden_channels[1])
        h1, h2 = self.hidden_channels
        self.conv1 = nn.Conv2d(in_channels, h1, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(h1, h2, 5, stride=2, padding=2)
        self.deconv1 = nn.ConvTranspose2d(h2, h1, 9, stride=2, padding=4, output_padding=1)
        self.deconv2 = nn.ConvTranspose2d(h1, in_channels, 1, stride=2, padding=0, output_padding=1)
        self.conv3 = nn.Conv2d(in_channels, in_channels, 5, stride=1, padding=2)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters afresh: Xavier uniform with the gain of tanh, biases zero."""
        for layer in (self.conv1, self.conv2, self.deconv1, self.deconv2, self.conv3):
            nn.init.xavier_uniform_(layer.weight, gain=_TANH_GAIN, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images.

        Args:
            x: (B, C, H, W), floating, values in [0, 1]; H and W multiples of 4.

        Returns:
            (B, C, H, W), values in (-1, 1).

        Raises:
            ValueError: a shape that does not fit.
        """
        self.check_shape(tuple(x.shape))
        x = torch.tanh(self.conv1(x))
        x = torch.tanh(self.conv2(x))
        x = torch.tanh(self.deconv1(x))
        x = torch.tanh(self.deconv2(x))
        return torch.tanh(self.conv3(x))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless ``shape`` is (B, in_channels, H, W) with H and W positive multiples of 4."""
        fits = len(shape) == 4 and shape[1] == self.in_channels
        if not fits or shape[2] < 4 or shape[2] % 4 or shape[3] < 4 or shape[3] % 4:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W) with H and W positive multiples of 4, "
                f"got {tuple(shape)}"
            )

    def weights(self) -> tuple[Tensor, ...]:
        """The ten parameter tensors, (weight, bias) of each layer in order, in torch's own layouts.

        Conv2d weights are (out, in, kh, kw), ConvTranspose2d weights (in, out, kh, kw).
        """
        convolutions = (self.conv1, self.conv2, self.deconv1, self.deconv2, self.conv3)
        return tuple(tensor for layer in convolutions for tensor in (layer.weight, layer.bias) if tensor is not None)

    def config(self) -> dict[str, object]:
        """Arguments that rebuild this architecture, for file headers."""
        return {"in_channels": self.in_channels, "hidden_channels": list(self.hidden_channels)}

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"in_channels={self.in_channels}, hidden_channels={self.hidden_channels}"
