"""Training of INC's variational autoencoder and of APuDAE's denoising autoencoder."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.checks import check_unit_images
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.vae import VaeDecoder, VaeEncoder
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class VaeSettings(LoopSettings):
    """Settings of :func:`train_vae`; the shared ones are described at ``LoopSettings``.

    Attributes:
        latent_dim, hidden: of encoder and decoder (paper 004, section 4.1).
    """

    epochs: int = 60
    batch_size: int = 100
    latent_dim: int = 20
    hidden: int = 500


class Vae(nn.Module):
    """Encoder and decoder, trained together.

    Args:
        latent_dim, hidden, image_shape: see :class:`VaeDecoder`.
    """

    def __init__(self, latent_dim: int, hidden: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = VaeEncoder(latent_dim, hidden, image_shape)
        self.decoder = VaeDecoder(latent_dim, hidden, image_shape)

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """Negative evidence lower bound in nats per image, (B,).

        Args:
            x: (B, C, H, W) in [0, 1], read as probabilities of Bernoulli pixels.
            noise: standard normal, (B, latent_dim).

        Source: Kingma and Welling 2014, eq. 10.
        """
        mean, log_variance = self.encoder(x)
        logits = self.decoder.logits(mean + (0.5 * log_variance).exp() * noise)
        fit = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)
        return fit + divergence


def train_vae(
    images: Tensor,
    *,
    validation: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[Vae, TrainingReport]:
    """Train a variational autoencoder.

    Args:
        images: (n, C, H, W) float32 in [0, 1].
        validation: images scored after each epoch.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`VaeSettings`.

    Returns:
        The autoencoder in eval mode with frozen parameters, and a report with ``validation_bound`` in nats per image.

    Raises:
        ValueError: images or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: paper 004, section 4.1.
    """
    chosen = VaeSettings(**settings)
    images = check_unit_images(images)
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        model = Vae(chosen.latent_dim, chosen.hidden, tuple(images.shape[1:]))

    def batch_loss(indices: Tensor) -> Tensor:
        return model.loss(images[indices], torch.randn(len(indices), chosen.latent_dim)).mean()

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        generator = torch.Generator().manual_seed(chosen.seed)
        noise = torch.randn(len(validation), chosen.latent_dim, generator=generator)
        return {"validation_bound": float(model.loss(validation, noise).mean())}

    report = run_epochs(
        model, chosen, len(images), batch_loss, validate, checkpoint=checkpoint, progress=progress, label="VAE"
    )
    return model.requires_grad_(False), report


@dataclass(frozen=True)
class DenoiserSettings(LoopSettings):
    """Settings of :func:`train_denoiser`; the shared ones are described at ``LoopSettings``.

    Attributes:
        largest_sigma: sigma_max; the standard deviation of each image's noise is uniform in [0, sigma_max]. The paper
            gives no value.
        width, depth: of the network (paper 003, Table 1).
    """

    epochs: int = 4
    largest_sigma: float = 0.5
    width: int = 64
    depth: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.largest_sigma) and self.largest_sigma > 0):
            raise ValueError(f"largest_sigma: expected a positive number, got {self.largest_sigma!r}")


def train_denoiser(
    images: Tensor,
    *,
    validation: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[SkipDenoiser, TrainingReport]:
    """Train APuDAE's denoising autoencoder on noise of random strength.

    Arguments and errors as for :func:`train_vae`; ``settings`` are fields of :class:`DenoiserSettings`.

    Returns:
        The autoencoder in eval mode with frozen parameters, and a report with ``validation_error``, the squared error
        summed over pixels per image.

    Source: paper 003, eq. 5.
    """
    chosen = DenoiserSettings(**settings)
    images = check_unit_images(images)
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        model = SkipDenoiser(images.shape[1], chosen.width, chosen.depth)

    def noisy(clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        sigma = chosen.largest_sigma * torch.rand(len(clean), 1, 1, 1, generator=generator)
        return clean + sigma * torch.randn(clean.shape, generator=generator)

    def batch_loss(indices: Tensor) -> Tensor:
        clean = images[indices]
        return (model(noisy(clean)) - clean).square().flatten(1).sum(1).mean()

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        generator = torch.Generator().manual_seed(chosen.seed)
        errors = [(model(noisy(x, generator)) - x).square().sum() for x in validation.split(500)]
        return {"validation_error": float(torch.stack(errors).sum()) / len(validation)}

    report = run_epochs(
        model, chosen, len(images), batch_loss, validate, checkpoint=checkpoint, progress=progress, label="APuDAE's DAE"
    )
    return model.requires_grad_(False), report
