"""Training of Defense-GAN's generator as a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017)."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmalade.checks import check_unit_images
from fastmalade.models.gan import Critic, GanGenerator
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class GanSettings(LoopSettings):
    """Settings of :func:`train_gan`; the shared ones are described at ``LoopSettings``.

    Attributes:
        learning_rate: of the generator.
        critic_rate: the critic's rate as a multiple of that. One critic step per generator step at a higher rate
            replaces five steps at the same rate (Heusel et al. 2017, two time-scale update rule): a fifth of the work.
        penalty: weight lambda of the gradient penalty.
        latent_dim, width, critic_width: of the two networks.
        average: decay of the running average of the generator's parameters; the average is the result.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-4
    critic_rate: float = 2.0
    penalty: float = 10.0
    latent_dim: int = 128
    width: int = 64
    critic_width: int = 64
    average: float = 0.998

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("critic_rate", "penalty"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if not 0.0 <= self.average < 1.0:
            raise ValueError(f"average: expected a number in [0, 1), got {self.average!r}")


class _Pair(nn.Module):
    """Both networks and the averaged generator: one state dict, so that one checkpoint holds the whole run."""

    def __init__(self, settings: GanSettings, channels: int) -> None:
        super().__init__()
        self.generator = GanGenerator(settings.latent_dim, settings.width, channels)
        self.critic = Critic(settings.critic_width, channels)
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)


def train_gan(
    images: Tensor,
    *,
    validation: Tensor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[GanGenerator, TrainingReport]:
    """Train a generator of images.

    Generator and critic take one Adam step each per batch, at the same time, with betas (0, 0.9).

    Args:
        images: (n, C, 28, 28) float32 in [0, 1].
        validation: images whose mean critic score is compared with that of generated ones.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`GanSettings`.

    Returns:
        The averaged generator in eval mode with frozen parameters, and a report. ``critic_gap`` is the critic's
        estimate of the Wasserstein distance to the validation images.

    Raises:
        ValueError: images or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: Gulrajani et al. 2017, algorithm 1, without its five critic steps (see ``GanSettings.critic_rate``).
    """
    chosen = GanSettings(**settings)
    images = check_unit_images(images)
    if tuple(images.shape[2:]) != GanGenerator.image_size:
        raise ValueError(f"images: expected shape (n, C, 28, 28), got {tuple(images.shape)}")
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        pair = _Pair(chosen, images.shape[1])
    generator, critic = pair.generator, pair.critic

    def batch_loss(indices: Tensor) -> Tensor:
        _follow(pair.averaged, generator, chosen.average)
        real = images[indices]
        fake = generator(torch.randn(len(real), chosen.latent_dim))
        # With the critic's parameters as constants the generator's loss reaches the generator alone; the other loss
        # sees detached images. One backward pass serves both networks.
        constants = {name: value.detach() for name, value in critic.named_parameters()}
        generator_loss = -functional_call(critic, constants, (fake,)).mean()
        held = fake.detach()
        scores = critic(torch.cat([held, real]))
        gap = scores[: len(real)].mean() - scores[len(real) :].mean()
        return generator_loss + gap + chosen.penalty * gradient_penalty(critic, real, held)

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        codes = torch.randn(500, chosen.latent_dim, generator=torch.Generator().manual_seed(chosen.seed))
        return {"critic_gap": float(critic(validation[:500]).mean() - critic(pair.averaged(codes)).mean())}

    optimizer = torch.optim.Adam(
        [
            {"params": list(generator.parameters()), "rate_factor": 1.0},
            {"params": list(critic.parameters()), "rate_factor": chosen.critic_rate},
        ],
        lr=chosen.learning_rate,
        betas=(0.0, 0.9),
    )
    report = run_epochs(
        pair,
        chosen,
        len(images),
        batch_loss,
        validate,
        checkpoint=checkpoint,
        progress=progress,
        label="WGAN-GP",
        optimizer=optimizer,
    )
    return pair.averaged.eval(), report


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (|grad D(x^)| - 1)^2 at one random point x^ between each real and generated image; scalar.

    Source: Gulrajani et al. 2017, eq. 3.
    """
    mix = torch.rand(len(real), 1, 1, 1, dtype=real.dtype)
    between = torch.lerp(real, fake, mix).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1.0).square().mean()


@torch.no_grad()
def _follow(averaged: nn.Module, current: nn.Module, decay: float) -> None:
    for kept, new in zip(averaged.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1.0 - decay)
