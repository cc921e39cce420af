"""Invert-and-classify, and autoencode-and-classify beside it (paper 004, Algorithm 1 and appendix A)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmalade.checks import check_count, check_positive
from fastmalade.defenses.base import Cost, Defense, StatedGradient
from fastmalade.defenses.code_search import CodeSearch
from fastmalade.defenses.optimizers import Adam
from fastmalade.models.flops import network_flops


class InvertAndClassify(CodeSearch):
    """Adam on the code of a generator from one random start; images far from their projection are rejected.

    The paper calls the inversion "non-differentiable"; here the gradient through its Adam steps is exact. It costs a
    second-order pass through the generator for each step.

    Args:
        generator: see :class:`CodeSearch`; the shipped one is the decoder of a variational autoencoder.
        n_steps: T. The paper runs "typically more than 2000".
        n_restarts: random starts per image, 1 in the paper.
        rate: of Adam, 0.1 for MNIST and 0.01 for CelebA in the paper.
        eta: an image is rejected if |G(z*) - x|_2, for images in [0, 1], is at least eta; None for never.
        code_scale: standard deviation of the starts: 1, and 2 for the paper's BEGAN.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        TypeError, ValueError: see :class:`CodeSearch`; or eta is not positive.

    Source: paper 004, section 2.1 and Algorithm 1.
    """

    kind: ClassVar[str] = "inc"

    def __init__(
        self,
        generator: nn.Module,
        *,
        n_steps: int = 200,
        n_restarts: int = 1,
        rate: float = 0.1,
        eta: float | None = None,
        code_scale: float = 1.0,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        super().__init__(
            generator,
            n_steps=n_steps,
            n_restarts=n_restarts,
            optimizer=Adam(rate),
            code_scale=code_scale,
            value_range=value_range,
            gradient=gradient,
        )
        if eta is not None:
            check_positive("eta", eta)
        self.rate, self.eta = rate, eta

    @torch.no_grad()
    def distance(self, x: Tensor, purified: Tensor) -> Tensor:
        """|G(z*) - x|_2 for each image, (B,), from images and their purified form, after mapping both to [0, 1]."""
        low, high = self.value_range
        return (purified - x).flatten(1).norm(dim=1) / (high - low)

    def rejects(self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None) -> Tensor:
        """Which images the paper calls "unnatural": those at least ``eta`` away from their purified form, bool (B,).

        Args:
            x, seed, sample_ids: see :meth:`forward`.

        Raises:
            ValueError: the defence has no eta.
        """
        if self.eta is None:
            raise ValueError("eta: expected a distance to reject by, got None")
        with torch.no_grad():
            return self.distance(x, self(x, seed=seed, sample_ids=sample_ids)) >= self.eta

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        return {"generator": self.generator}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        return {
            "n_steps": self.n_steps,
            "n_restarts": self.n_restarts,
            "rate": self.rate,
            "eta": self.eta,
            "code_scale": self.code_scale,
            "gradient": self.gradient,
        }


class AutoencodeAndClassify(Defense):
    """x -> G(E(x)): the encoder's mean instead of a search, for comparison. Deterministic, with an exact gradient.

    Args:
        encoder: E, (B, C, H, W) in [0, 1] -> (mean, log variance) of the code.
        generator: G, see :class:`CodeSearch`.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Source: paper 004, appendix A, which warns that "it is indeed easy to attack".
    """

    kind: ClassVar[str] = "autoencode"

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        super().__init__(value_range=value_range, gradient=gradient)
        self.encoder, self.generator = encoder, generator

    @property
    def channels(self) -> int:
        """C of the images."""
        return int(getattr(self.generator, "out_channels"))  # noqa: B009 - nn.Module's attributes are typed as modules

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images: those of the generator."""
        size: Any = self.generator.image_size
        return size[0], size[1]

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] | None = None) -> Cost:
        """See :meth:`fastmalade.Defense.cost`; encoder and generator together count as one evaluation."""
        check_count("batch", batch, 1)
        if image_shape is not None:
            self._check_shape((batch, *image_shape))
        latent: Any = self.generator.latent_dim
        encode, _ = network_flops(_Mean(self.encoder), (1, self.channels, *self.image_size))
        decode, _ = network_flops(self.generator, (1, latent))
        return Cost(batch * (encode + decode), batch, 0)

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        return {"encoder": self.encoder, "generator": self.generator}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        return {"gradient": self.gradient}

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        return self.generator(self.encoder(x)[0])


class _Mean(nn.Module):
    """The first output of an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0]
