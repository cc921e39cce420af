"""Training of the DAE and of the supervised DAE (paper 000, sections 3 and 4.1)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.checks import check_labels, check_unit_images
from fastmalade.models import Autoencoder
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class AutoencoderSettings(LoopSettings):
    """Settings of :func:`train_autoencoder`; the shared ones are described at ``LoopSettings``.

    Attributes:
        sigma2: variance of the noise added to the images: 0.3 (000) or 0.15 (001) on MNIST, 0.01 on CIFAR-10.
        class_balanced: weight each image by n / (K n_y), so that every class counts the same (000, section 4.1).
        hidden_channels: (h1, h2) of the autoencoder.
    """

    epochs: int = 50
    learning_rate: float = 1e-2
    sigma2: float = 0.15
    class_balanced: bool = False
    hidden_channels: tuple[int, int] = (10, 25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.sigma2) and self.sigma2 > 0):
            raise ValueError(f"sigma2: expected a positive number, got {self.sigma2!r}")


def autoencoder_loss(
    reconstruction: Tensor,
    clean: Tensor,
    *,
    sigma2: float,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Objective per image: ||r(x+nu) - x||^2 summed over pixels, plus 2 sigma^2 CE(logits, y) when supervised.

    Args:
        reconstruction: r(x + nu), (B, C, H, W).
        clean: x, (B, C, H, W).
        sigma2: variance of nu.
        logits: classifier(r(x + nu)), (B, K); None for the unsupervised DAE.
        labels: (B,) int64, needed with ``logits``.

    Returns:
        (B,) losses.

    Source: paper 000, eq. 5 and eq. 8. The printed sign of the second term in eq. 8 is wrong for J = cross entropy;
    the text of section 1 ("sum of the reconstruction loss and the cross entropy loss") and the proof's eq. 12 give
    this one.
    """
    loss = (reconstruction - clean).square().flatten(1).sum(1)
    if logits is not None:
        if labels is None:
            raise ValueError("expected labels with logits, got None")
        loss = loss + 2.0 * sigma2 * F.cross_entropy(logits, labels, reduction="none")
    return loss


def train_autoencoder(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    classifier: nn.Module | None = None,
    initial: Autoencoder | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[Autoencoder, TrainingReport]:
    """Train a DAE, or, given a classifier, a supervised DAE.

    The classifier is any module from (B, C, H, W) in [0, 1] to logits; it runs in eval mode and is not changed.

    Args:
        images: (n, C, H, W) float32 in [0, 1], H and W multiples of 4.
        labels: (n,) int64; needed with a classifier or ``class_balanced``.
        classifier: supervises the training (sDAE); without one a DAE is trained.
        initial: start from a copy of its parameters, for instance a DAE's for the sDAE; from fresh ones when None.
        validation: images and labels scored after each epoch, with the same noise each time.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`AutoencoderSettings`.

    Returns:
        The autoencoder in eval mode with frozen parameters, and a report: ``validation_error`` (reconstruction error
        per image) and, when supervised, ``validation_accuracy`` of the classifier on the reconstructions.

    Raises:
        ValueError: images, labels or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: paper 000, eq. 5 (DAE) and eq. 8 with the sign corrected (sDAE).
    """
    chosen = AutoencoderSettings(**settings)
    images = check_unit_images(images)
    if labels is None and (classifier is not None or chosen.class_balanced):
        raise ValueError("expected labels, which a classifier and class_balanced both need; got None")
    if labels is not None:
        check_labels(labels, len(images), int(labels.max()) + 1)
    # torch's layers first draw default parameters from the global generator, which must not advance.
    with torch.random.fork_rng():
        generator = torch.Generator().manual_seed(chosen.seed)
        model = Autoencoder(images.shape[1], chosen.hidden_channels, generator=generator)
    model.check_shape(tuple(images.shape))
    if initial is not None:
        if initial.config() != model.config():
            raise ValueError(f"initial: expected an autoencoder {model.config()}, got {initial.config()}")
        model.load_state_dict(initial.state_dict())
    weights = _class_weights(labels) if chosen.class_balanced and labels is not None else None
    sigma = math.sqrt(chosen.sigma2)

    def loss_of(clean: Tensor, noise: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        reconstruction = model(clean + sigma * noise)
        logits = None if classifier is None else classifier(reconstruction)
        loss = autoencoder_loss(reconstruction, clean, sigma2=chosen.sigma2, logits=logits, labels=targets)
        return loss, reconstruction, logits

    def batch_loss(indices: Tensor) -> Tensor:
        clean = images[indices]
        targets = None if labels is None else labels[indices]
        loss, _, _ = loss_of(clean, torch.randn_like(clean), targets)
        return (loss if weights is None else loss * weights[indices]).mean()

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        generator = torch.Generator().manual_seed(chosen.seed)
        error, correct = 0.0, 0
        for clean, targets in zip(validation[0].split(500), validation[1].split(500), strict=True):
            noise = torch.randn(clean.shape, generator=generator)
            _, reconstruction, logits = loss_of(clean, noise, targets)
            error += float((reconstruction - clean).square().sum())
            correct += 0 if logits is None else int((logits.argmax(1) == targets).sum())
        scores = {"validation_error": error / len(validation[0])}
        if classifier is not None:
            scores["validation_accuracy"] = correct / len(validation[0])
        return scores

    label = "DAE" if classifier is None else "sDAE"
    with _frozen(classifier):
        report = run_epochs(
            model,
            chosen,
            len(images),
            batch_loss,
            validate,
            checkpoint=checkpoint,
            progress=progress,
            label=label,
            extra={"supervised": classifier is not None, "warm_start": initial is not None},
        )
    return model.requires_grad_(False), report


class _frozen:  # noqa: N801 - reads as a statement: with _frozen(classifier)
    """The classifier in eval mode without gradients for its parameters; everything is restored afterwards."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __enter__(self) -> None:
        if self.module is not None:
            self.modes = [(m, m.training) for m in self.module.modules()]
            self.flags = [(p, p.requires_grad) for p in self.module.parameters()]
            self.module.eval().requires_grad_(False)

    def __exit__(self, *exc: object) -> None:
        if self.module is not None:
            for module, training in self.modes:
                module.training = training
            for parameter, flag in self.flags:
                parameter.requires_grad_(flag)


def _class_weights(labels: Tensor) -> Tensor:
    """Weight n / (K n_y) of each image, float32 (n,): classes count the same, the mean weight is 1."""
    counts = torch.bincount(labels)
    present = int((counts > 0).sum())
    return (len(labels) / (present * counts.clamp(min=1).float()))[labels]
