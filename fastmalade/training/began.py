"""Training of a BEGAN, whose generator is that of INC on 64x64 colour images (Berthelot et al. 2017)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmalade.checks import check_unit_images
from fastmalade.models.began import BeganDiscriminator, BeganGenerator
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class BeganSettings(LoopSettings):
    """Settings of :func:`train_began`; the shared ones are described at ``LoopSettings``.

    Attributes:
        epochs: 50 epochs of 160,000 images are the 500,000 steps of the code that paper 004 refers to.
        gamma: the ratio L(G(z)) / L(x) that training aims at, in (0, 1]; low values give better but less varied images.
        balance_rate: lambda_k, the step size of the balance k.
        latent_dim, width, depth: of both networks, see :class:`BeganGenerator`.
        code_scale: standard deviation of the codes, 2 in paper 004.
    """

    epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-4
    gamma: float = 0.5
    balance_rate: float = 1e-3
    latent_dim: int = 128
    width: int = 128
    depth: int = 1
    code_scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("balance_rate", "code_scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma: expected a number in (0, 1], got {self.gamma!r}")


class _Pair(nn.Module):
    """Both networks and the balance k: one state dict, so that one checkpoint holds the whole run."""

    balance: Tensor

    def __init__(self, settings: BeganSettings, channels: int) -> None:
        super().__init__()
        self.generator = BeganGenerator(settings.latent_dim, settings.width, channels, settings.depth)
        self.discriminator = BeganDiscriminator(settings.latent_dim, settings.width, channels, settings.depth)
        self.register_buffer("balance", torch.zeros(()))


def train_began(
    images: Tensor,
    *,
    validation: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[BeganGenerator, TrainingReport]:
    """Train a generator of 64x64 images.

    With L(v) the discriminator's reconstruction error, each batch takes one Adam step of both networks on

        L_D = L(x) - k L(G(z)),    L_G = L(G(z)),

    and then moves k by :func:`next_balance`.

    Args:
        images: (n, C, 64, 64) float32 in [0, 1].
        validation: images for the convergence measure, which is not reported without them.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`BeganSettings`.

    Returns:
        The generator in eval mode with frozen parameters, and a report with ``balance`` (k) and ``convergence``,
        L(x) + |gamma L(x) - L(G(z))|, in units of images in [-1, 1].

    Raises:
        ValueError: images or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: Berthelot et al. 2017, sections 3.3 and 3.4; the rate falls as in ``LoopSettings``, not by halves.
    """
    chosen = BeganSettings(**settings)
    images = check_unit_images(images)
    validation = None if validation is None else check_unit_images(validation)
    for name, value in (("images", images), ("validation", validation)):
        if value is None:
            continue
        if tuple(value.shape[2:]) != BeganGenerator.image_size:
            raise ValueError(f"{name}: expected shape (n, C, 64, 64), got {tuple(value.shape)}")
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        pair = _Pair(chosen, images.shape[1])
    generator, discriminator = pair.generator, pair.discriminator

    def batch_loss(indices: Tensor) -> Tensor:
        real = images[indices]
        fake = generator(chosen.code_scale * torch.randn(len(real), chosen.latent_dim))
        # With the discriminator's parameters as constants the generator's loss reaches the generator alone; the other
        # loss sees detached images. One backward pass serves both networks.
        constants = {name: value.detach() for name, value in discriminator.named_parameters()}
        generator_loss = functional_call(discriminator, constants, (fake,)).mean()
        real_error, fake_error = discriminator(torch.cat([real, fake.detach()])).chunk(2)
        loss = generator_loss + real_error.mean() - pair.balance * fake_error.mean()
        # A new tensor: the loss still refers to the old one.
        pair.balance = next_balance(
            pair.balance, real_error.detach().mean(), generator_loss.detach(), chosen.gamma, chosen.balance_rate
        )
        return loss

    def validate() -> dict[str, float]:
        scores = {"balance": float(pair.balance)}
        if validation is not None:
            codes = chosen.code_scale * torch.randn(
                len(validation), chosen.latent_dim, generator=torch.Generator().manual_seed(chosen.seed)
            )
            size = chosen.batch_size
            real = float(torch.cat([discriminator(part) for part in validation.split(size)]).mean())
            fake = float(torch.cat([discriminator(generator(part)) for part in codes.split(size)]).mean())
            scores["convergence"] = real + abs(chosen.gamma * real - fake)
        return scores

    report = run_epochs(
        pair, chosen, len(images), batch_loss, validate, checkpoint=checkpoint, progress=progress, label="BEGAN"
    )
    return generator.requires_grad_(False), report


def next_balance(balance: Tensor, real: Tensor, fake: Tensor, gamma: float, rate: float) -> Tensor:
    """k + rate (gamma L(x) - L(G(z))), clamped to [0, 1].

    Where generated images are reconstructed too well for ``gamma``, k rises, and with it their weight in L_D.

    Args:
        balance: k, scalar.
        real, fake: L(x) and L(G(z)), scalars.
        gamma, rate: see :class:`BeganSettings`.

    Source: Berthelot et al. 2017, section 3.4.
    """
    return (balance + rate * (gamma * real - fake)).clamp(0.0, 1.0)
