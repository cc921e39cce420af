"""Defense-GAN: the nearest image that a GAN's generator can make (Samangouei et al. 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from fastmalade.defenses.base import StatedGradient
from fastmalade.defenses.code_search import CodeSearch
from fastmalade.defenses.optimizers import Momentum


class DefenseGan(CodeSearch):
    """L momentum steps on the code from each of R random starts, of which the one with the smallest error is used.

    Args:
        generator: see :class:`CodeSearch`; the shipped one is a :class:`fastmalade.models.gan.GanGenerator`.
        n_steps: L, 200 in the tables of the paper and of 000.
        n_restarts: R, 10 in the tables of the paper and of 000; Table 6 of 000 gives times for R = 1.
        rate, momentum: see :class:`Momentum`; the loss is the mean over pixels.
        code_scale: standard deviation of the starts; None for 1 / sqrt(latent_dim), as in the public code.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        TypeError, ValueError: see :class:`CodeSearch`.

    Source: Samangouei et al. 2018, section 3 and eq. 5; settings that the paper leaves open are those of its public
    code.
    """

    kind: ClassVar[str] = "defense-gan"
    mean_over_pixels = True

    def __init__(
        self,
        generator: nn.Module,
        *,
        n_steps: int = 200,
        n_restarts: int = 10,
        rate: float = 10.0,
        momentum: float = 0.7,
        code_scale: float | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        latent = getattr(generator, "latent_dim", 1)
        super().__init__(
            generator,
            n_steps=n_steps,
            n_restarts=n_restarts,
            optimizer=Momentum(rate, momentum),
            code_scale=latent**-0.5 if code_scale is None else code_scale,
            value_range=value_range,
            gradient=gradient,
        )
        self.rate, self.momentum = rate, momentum

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        return {"generator": self.generator}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        return {
            "n_steps": self.n_steps,
            "n_restarts": self.n_restarts,
            "rate": self.rate,
            "momentum": self.momentum,
            "code_scale": self.code_scale,
            "gradient": self.gradient,
        }
