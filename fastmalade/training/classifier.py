"""Training of a classifier by cross entropy."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.checks import check_labels, check_unit_images
from fastmalade.models import build_classifier, in_channels_last
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class ClassifierSettings(LoopSettings):
    """Settings of :func:`train_classifier`; the shared ones are described at ``LoopSettings``.

    Attributes:
        name: "A", "B", "C" or "D" (paper 000, Table 7).
        max_shift: each training image is moved by up to this many pixels in each direction, 0 for none.
    """

    name: str = "C"
    epochs: int = 12
    max_shift: int = 0


def train_classifier(
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    **settings: int | float,
) -> tuple[nn.Module, TrainingReport]:
    """Train classifier A, B, C or D of paper 000, Table 7.

    Args:
        name: "A", "B", "C" or "D".
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        validation: images and labels scored after each epoch.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        num_classes: logits; one more than the largest label when None.
        settings: fields of :class:`ClassifierSettings` (epochs, batch_size, learning_rate, seed, max_shift).

    Returns:
        The classifier in eval mode with frozen parameters, and a report with ``validation_accuracy`` per epoch.

    Raises:
        ValueError: images, labels or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.
    """
    chosen = ClassifierSettings(name=name, **settings)  # type: ignore[arg-type]
    images = check_unit_images(images)
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    check_labels(labels, len(images), classes)
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        model = build_classifier(
            name, in_channels=images.shape[1], image_size=tuple(images.shape[2:]), num_classes=classes
        )
    in_channels_last(model)

    def batch_loss(indices: Tensor) -> Tensor:
        batch = _shifted(images[indices], chosen.max_shift).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(model(batch), labels[indices])

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        correct = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(validation[0].split(500), validation[1].split(500), strict=True)
        )
        return {"validation_accuracy": correct / len(validation[1])}

    report = run_epochs(
        model,
        chosen,
        len(images),
        batch_loss,
        validate,
        checkpoint=checkpoint,
        progress=progress,
        label=f"classifier {name}",
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model.requires_grad_(False), report


def _shifted(images: Tensor, max_shift: int) -> Tensor:
    """Move the whole batch (B, C, H, W) by one random offset; uncovered pixels are 0."""
    if max_shift == 0:
        return images
    down, right = torch.randint(-max_shift, max_shift + 1, (2,)).tolist()
    padded = F.pad(images, (max_shift,) * 4)
    height, width = images.shape[2:]
    return padded[:, :, max_shift + down :, max_shift + right :][:, :, :height, :width]
