"""Training of the DAE and of the supervised DAE (paper 000, sections 3 and 4.1)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.chain.call import langevin_chain
from fastmalade.checks import check_labels, check_unit_images
from fastmalade.models import Autoencoder
from fastmalade.models.modes import evaluation_mode, gradients_off
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class AutoencoderSettings(LoopSettings):
    """Settings of :func:`train_autoencoder`; the shared ones are described at ``LoopSettings``.

    Attributes:
        sigma2: variance of the noise added to the images: 0.3 (000) or 0.15 (001) on MNIST, 0.01 on CIFAR-10.
        supervision: weight lambda of the supervised term, see :func:`autoencoder_loss`; not read without a classifier.
        class_balanced: weight each image by n / (K n_y), so that every class counts the same (000, section 4.1).
        hidden_channels: (h1, h2) of the autoencoder.
    """

    epochs: int = 50
    learning_rate: float = 1e-2
    sigma2: float = 0.15
    supervision: float = 1.0
    class_balanced: bool = False
    hidden_channels: tuple[int, int] = (10, 25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.sigma2) and self.sigma2 > 0):
            raise ValueError(f"sigma2: expected a positive number, got {self.sigma2!r}")
        if not (math.isfinite(self.supervision) and self.supervision >= 0):
            raise ValueError(f"supervision: expected a number of at least 0, got {self.supervision!r}")


def autoencoder_loss(
    reconstruction: Tensor,
    clean: Tensor,
    *,
    sigma2: float,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    supervision: float = 1.0,
) -> Tensor:
    """Objective per image: ||r(x+nu) - x||^2 summed over pixels, plus lambda 2 sigma^2 CE(logits, y) when supervised.

    Paper 000 prints lambda = 1 with a squared norm, a sum over pixels: the second term is then a thousandth of the
    first on MNIST. Read as the mean squared error that code usually computes, the first term is smaller by the number
    of pixels: in units of this function lambda is that number, 784 on MNIST. Which one the authors used is not known.

    Args:
        reconstruction: r(x + nu), (B, C, H, W).
        clean: x, (B, C, H, W).
        sigma2: variance of nu.
        logits: classifier(r(x + nu)), (B, K); None for the unsupervised DAE.
        labels: (B,) int64, needed with ``logits``.
        supervision: lambda, at least 0.

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
        loss = loss + supervision * 2.0 * sigma2 * F.cross_entropy(logits, labels, reduction="none")
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
    device: torch.device | str = "cpu",
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
        device: where training runs; batches are moved there. The classifier is taken there and back.
        settings: fields of :class:`AutoencoderSettings`.

    Returns:
        The autoencoder on ``device``, in eval mode with frozen parameters, and a report: ``validation_error`` (error
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
    model.to(device)
    if initial is not None:
        if initial.config() != model.config():
            raise ValueError(f"initial: expected an autoencoder {model.config()}, got {initial.config()}")
        model.load_state_dict(initial.state_dict())
    weights = _class_weights(labels) if chosen.class_balanced and labels is not None else None
    sigma = math.sqrt(chosen.sigma2)

    def reconstruct(noisy: Tensor) -> Tensor:
        # One step of step size 1 without noise is r, and its kernels have the gradient of the weights too.
        return langevin_chain(noisy, model, [1.0], [0.0], seed=0)

    def batch_loss(indices: Tensor) -> Tensor:
        clean = images[indices].to(device)
        reconstruction = reconstruct(clean + sigma * torch.randn_like(clean))
        targets = logits = None
        if classifier is not None and labels is not None and chosen.supervision > 0:
            targets, logits = labels[indices].to(device), classifier(reconstruction)
        loss = autoencoder_loss(
            reconstruction,
            clean,
            sigma2=chosen.sigma2,
            logits=logits,
            labels=targets,
            supervision=chosen.supervision,
        )
        return (loss if weights is None else loss * weights[indices].to(device)).mean()

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        generator = torch.Generator().manual_seed(chosen.seed)
        error, correct = 0.0, 0
        for clean, targets in zip(validation[0].split(500), validation[1].split(500), strict=True):
            noise = torch.randn(clean.shape, generator=generator)
            reconstruction = reconstruct((clean + sigma * noise).to(device))
            error += float((reconstruction.cpu() - clean).square().sum())
            if classifier is not None:
                correct += int((classifier(reconstruction).argmax(1).cpu() == targets).sum())
        scores = {"validation_error": error / len(validation[0])}
        if classifier is not None:
            scores["validation_accuracy"] = correct / len(validation[0])
        return scores

    label = "DAE" if classifier is None else "sDAE"
    with _frozen(classifier, device):
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


@contextmanager
def _frozen(classifier: nn.Module | None, device: torch.device | str) -> Iterator[None]:
    """The classifier on the device, in eval mode, its parameters constants; everything is restored afterwards."""
    homes = [] if classifier is None else [(tensor, tensor.device) for tensor in classifier.parameters()]
    with evaluation_mode(classifier), gradients_off(classifier):
        for tensor, _ in homes:
            tensor.data = tensor.data.to(device)
        try:
            yield
        finally:
            for tensor, home in homes:
                tensor.data = tensor.data.to(home)


def _class_weights(labels: Tensor) -> Tensor:
    """Weight n / (K n_y) of each image, float32 (n,): classes count the same, the mean weight is 1."""
    counts = torch.bincount(labels)
    present = int((counts > 0).sum())
    return (len(labels) / (present * counts.clamp(min=1).float()))[labels]
