"""Classifiers A to D (paper 000, Table 7); C is the "CNN" of paper 001, Table 5.

The paper gives filters, sizes and strides but not the padding; these use none ("valid"), as does the
adversarial-training code that the tables come from. The final softmax is left to the loss: ``forward`` returns logits,
as attack libraries expect. Dropout acts in training only, so at inference the function is the paper's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmalade.models.single_channel import SingleChannelConv2d


def _first(in_channels: int, out_channels: int, kernel_size: int, **options: int) -> nn.Conv2d:
    """The convolution that takes the images."""
    if in_channels == 1:
        return SingleChannelConv2d(out_channels, kernel_size, **options)
    return nn.Conv2d(in_channels, out_channels, kernel_size, **options)  # type: ignore[arg-type]


class _TableClassifier(nn.Module, ABC):
    """Convolutions, then linear layers, the first of which takes whatever the image size leaves.

    Args:
        in_channels: channels of the images.
        image_size: (H, W) in pixels.
        num_classes: number of logits.
        dropout: probabilities before the first and before the last linear layer, in training mode only.
    """

    name = ""

    def __init__(
        self,
        in_channels: int = 1,
        image_size: Sequence[int] = (28, 28),
        num_classes: int = 10,
        dropout: tuple[float, float] = (0.25, 0.5),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.num_classes = num_classes
        self.dropout = dropout
        self.features = self._features(in_channels)
        self.head = self._head(self._width())

    def _width(self) -> int:
        """Numbers per image after ``features``. A dry run on the meta device would take a second to import."""
        channels, (height, width) = self.in_channels, self.image_size
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
                height, width = (
                    (n + 2 * int(layer.padding[i]) - layer.kernel_size[i]) // layer.stride[i] + 1
                    for i, n in enumerate((height, width))
                )
                if min(height, width) < 1:
                    raise ValueError(
                        f"image_size: expected room for the convolutions of {self.name}, got {self.image_size}"
                    )
        return channels * height * width

    @abstractmethod
    def _features(self, in_channels: int) -> nn.Sequential:
        """Layers up to and including the flattening."""

    def _head(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Dropout(self.dropout[0]),
            nn.Linear(width, 128),
            nn.ReLU(),
            nn.Dropout(self.dropout[1]),
            nn.Linear(128, self.num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images x (B, C, H, W) with values in [0, 1].

        Raises:
            ValueError: images of another shape than the classifier was built for.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.image_size):
            expected = ("B", self.in_channels, *self.image_size)
            raise ValueError(f"expected images of shape {expected}, got {tuple(x.shape)}")
        return self.head(self.features(x))

    def config(self) -> dict[str, object]:
        """Arguments of :func:`build_classifier` that rebuild this architecture, for file headers."""
        return {
            "name": self.name,
            "in_channels": self.in_channels,
            "image_size": list(self.image_size),
            "num_classes": self.num_classes,
        }


class ClassifierA(_TableClassifier):
    """Conv(64, 5x5, 1), Conv(64, 5x5, 2), Linear(128), Linear(10), ReLU between (paper 000, Table 7)."""

    name = "A"

    def _features(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(
            _first(in_channels, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5, stride=2), nn.ReLU(), nn.Flatten()
        )


class ClassifierB(_TableClassifier):
    """Conv(64, 8x8, 2), Conv(128, 6x6, 2), Conv(128, 5x5, 1), Linear(10), ReLU between (paper 000, Table 7).

    Without padding the last convolution would not fit on a 28x28 image, so the first one pads by 3.
    """

    name = "B"

    def _features(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(
            _first(in_channels, 64, 8, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv2d(64, 128, 6, stride=2),
            nn.ReLU(),
            nn.Conv2d(128, 128, 5),
            nn.ReLU(),
            nn.Flatten(),
        )

    def _head(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Dropout(self.dropout[1]), nn.Linear(width, self.num_classes))


class ClassifierC(_TableClassifier):
    """Conv(128, 3x3, 1), Conv(64, 5x5, 2), Linear(128), Linear(10), ReLU between (paper 000, Table 7; 001 "CNN")."""

    name = "C"

    def _features(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(
            _first(in_channels, 128, 3),
            nn.ReLU(),
            nn.Conv2d(128, 64, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )


class ClassifierD(_TableClassifier):
    """Linear(200), Linear(200), Linear(10), ReLU between (paper 000, Table 7)."""

    name = "D"

    def _features(self, in_channels: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten())

    def _head(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, 200),
            nn.ReLU(),
            nn.Dropout(self.dropout[1]),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Dropout(self.dropout[1]),
            nn.Linear(200, self.num_classes),
        )


CLASSIFIERS: dict[str, type[_TableClassifier]] = {
    cls.name: cls for cls in (ClassifierA, ClassifierB, ClassifierC, ClassifierD)
}


def build_classifier(
    name: str,
    *,
    in_channels: int = 1,
    image_size: Sequence[int] = (28, 28),
    num_classes: int = 10,
) -> nn.Module:
    """Build classifier "A", "B", "C" or "D" with fresh parameters; it maps (B, C, H, W) in [0, 1] to logits (B, K).

    Raises:
        ValueError: an unknown name, or images too small for the convolutions.

    Source: paper 000, Table 7.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier name: expected one of {sorted(CLASSIFIERS)}, got {name!r}")
    return CLASSIFIERS[name](in_channels, image_size, num_classes)


def in_channels_last(model: nn.Module) -> nn.Module:
    """Store convolution weights channels-last, in place: the same function in the layout that is fastest on CPUs."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # Not by memory_format: weights of one input channel are contiguous in both formats and would stay as they
            # are, and a convolution chooses the format of its output by their strides.
            _, channels, rows, columns = parameter.shape
            strides = (rows * columns * channels, 1, columns * channels, channels)
            ordered = torch.empty_strided(parameter.shape, strides, dtype=parameter.dtype, device=parameter.device)
            parameter.data = ordered.copy_(parameter.data)
    return model
