"""Projection onto the range of a generator by descent on its code: what Defense-GAN and INC share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.checks import check_count
from fastmalade.defenses.base import Cost, Defense, StatedGradient
from fastmalade.defenses.optimizers import Adam, Momentum
from fastmalade.defenses.unrolled import State, inner_gradient, iterate
from fastmalade.models.flops import network_flops
from fastmalade.noise import normals_like


class CodeSearch(Defense):
    """x -> G(z*), where z* is the best code that descent finds from several random starts, run as one batch.

    The gradient is the exact derivative through all steps, for the starts that were drawn. The choice of the best start
    is piecewise constant and adds nothing to it.

    Args:
        generator: G, (B, latent_dim) -> (B, C, H, W) in [0, 1], with attributes ``latent_dim``, ``out_channels`` and
            ``image_size``.
        n_steps: descent steps, >= 0.
        n_restarts: random starts per image, >= 1.
        optimizer: rule of the descent.
        code_scale: standard deviation of the starting codes, > 0.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        TypeError: not a generator, or counts that are not integers.
        ValueError: a count or a scale out of its range.
    """

    # Losses are means over pixels, as in Defense-GAN's code, or sums, as in paper 004.
    mean_over_pixels = False

    def __init__(
        self,
        generator: nn.Module,
        *,
        n_steps: int,
        n_restarts: int,
        optimizer: Momentum | Adam,
        code_scale: float,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        super().__init__(value_range=value_range, gradient=gradient)
        for name in ("latent_dim", "out_channels", "image_size"):
            if not hasattr(generator, name):
                raise TypeError(f"generator: expected a module with {name}, got {type(generator).__name__}")
        check_count("n_steps", n_steps, 0)
        check_count("n_restarts", n_restarts, 1)
        if not code_scale > 0:
            raise ValueError(f"code_scale: expected a positive number, got {code_scale!r}")
        self.generator = generator
        self.n_steps = n_steps
        self.n_restarts = n_restarts
        self.optimizer = optimizer
        self.code_scale = float(code_scale)

    @property
    def channels(self) -> int:
        """C of the images."""
        return int(self._of_generator("out_channels"))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images: those of the generator."""
        height, width = self._of_generator("image_size")
        return height, width

    @property
    def states_kept(self) -> int:
        """One for each start: codes are small, so what counts is the graph of one step."""
        return self.n_restarts

    def codes(self, x: Tensor, *, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        """Codes after the descent, (B, n_restarts, latent_dim), for images x (B, C, H, W) in [0, 1]."""
        targets = x.repeat_interleave(self.n_restarts, dim=0)
        start = self._start(x, seed, sample_ids)
        state = (start, *self.optimizer.slots((start,)))
        found = iterate(self._step, self.n_steps, targets, state)[0]
        return found.reshape(len(x), self.n_restarts, -1)

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] | None = None) -> Cost:
        """See :meth:`fastmalade.Defense.cost`; the shape of the images is the generator's."""
        check_count("batch", batch, 1)
        if image_shape is not None:
            self._check_shape((batch, *image_shape))
        forward, gradient = network_flops(self.generator, (1, self._of_generator("latent_dim")))
        searches = batch * self.n_restarts
        evaluations = searches * (self.n_steps + 1), searches * self.n_steps
        return Cost(evaluations[0] * forward + evaluations[1] * gradient, *evaluations)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return (
            f"n_steps={self.n_steps}, n_restarts={self.n_restarts}, optimizer={self.optimizer}, "
            f"gradient={self.gradient!r}"
        )

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        codes = self.codes(x, seed=seed, sample_ids=sample_ids)
        images = self.generator(codes.flatten(0, 1)).unflatten(0, (len(x), self.n_restarts))
        if self.n_restarts == 1:
            return images[:, 0]
        errors = (images.detach() - x.detach()[:, None]).square().flatten(2).sum(2)
        return images[torch.arange(len(x), device=x.device), errors.argmin(1)]

    def _start(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        shape = (self._of_generator("latent_dim"),)
        starts = [normals_like(x, seed, sample_ids, restart, shape) for restart in range(self.n_restarts)]
        return self.code_scale * torch.stack(starts, dim=1).flatten(0, 1)

    def _step(self, x: Tensor, state: State, t: int) -> State:
        code, *slots = state

        def losses(at: Any) -> Tensor:
            squares = (self.generator(at[0]) - x).square().flatten(1)
            return squares.mean(1) if self.mean_over_pixels else squares.sum(1)

        gradients, _ = inner_gradient(losses, (code,))
        return self.optimizer.update((code,), gradients, slots, t, self.n_steps)

    def _of_generator(self, name: str) -> Any:
        return getattr(self.generator, name)
