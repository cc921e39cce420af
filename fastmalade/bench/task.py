"""What every contender computes: one chain on one batch, with the images it is timed on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastmalade import reference
from fastmalade.chain.config import ChainConfig
from fastmalade.data import embedded_digits
from fastmalade.defenses.purifier import Purifier
from fastmalade.models import Autoencoder

MODEL = "malade-mnist"
LOW, HIGH = 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class Task:
    """x <- x + a_t (r(x) - x) + d_t z_t for N steps on a batch, then clamped once to [0, 1].

    Attributes:
        weights: the ten float32 tensors of ``Autoencoder.weights()``, without gradient.
        shape: (C, H, W) of an image.
        batch: B, images per call.
        chain: number of steps, a_t and d_t; clamped after the last step.
        threads: threads that one call may use.
    """

    weights: tuple[Tensor, ...]
    shape: tuple[int, int, int]
    batch: int
    chain: ChainConfig
    threads: int = 1

    @functools.cached_property
    def step_sizes(self) -> tuple[float, ...]:
        """a_0..a_{N-1}."""
        return tuple(self.chain.schedule()[0])

    @functools.cached_property
    def noise_scales(self) -> tuple[float, ...]:
        """d_0..d_{N-1}."""
        return tuple(self.chain.schedule()[1])

    @property
    def n_steps(self) -> int:
        """N, the number of steps."""
        return self.chain.n_steps

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        return (self.batch, *self.shape)

    @property
    def hidden(self) -> tuple[int, int]:
        """(h1, h2), the hidden channel counts."""
        return int(self.weights[0].shape[0]), int(self.weights[2].shape[0])

    def noiseless(self) -> Task:
        """The same chain with every noise scale zero."""
        return dataclasses.replace(self, chain=self.chain.replace(noise_scale=0.0))

    def noise_only(self, scale: float) -> Task:
        """N steps that add noise of standard deviation ``scale`` and nothing else."""
        chain = ChainConfig(self.n_steps, step_size=0.0, noise_scale=scale, clamp="final")
        return dataclasses.replace(self, chain=chain)


def make_task(shape: tuple[int, int, int], batch: int, n_steps: int, threads: int = 1) -> Task:
    """The chain of the shipped "malade-mnist" with ``n_steps`` steps, on images of ``shape`` (C, H, W).

    One channel takes the shipped weights; other channel counts, for which none ship, take an untrained Table 8
    autoencoder (paper 000) from a fixed seed: the arithmetic is the same.

    Raises:
        ValueError: H or W not a positive multiple of 4, or a count below 1.
    """
    for name, count in (("batch", batch), ("steps", n_steps), ("threads", threads)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    purifier = Purifier.from_pretrained(MODEL)
    autoencoder = purifier.autoencoder
    if shape[0] != 1:
        autoencoder = Autoencoder(shape[0], generator=torch.Generator().manual_seed(0))
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.check_shape((batch, *shape))
    return Task(
        weights=tuple(weight.detach() for weight in autoencoder.weights()),
        shape=shape,
        batch=batch,
        chain=purifier.chain.replace(n_steps=n_steps, clamp="final"),
        threads=threads,
    )


def make_images(task: Task) -> np.ndarray:
    """Images to time on, float32 (B, C, H, W) in [0, 1]: real digits where they fit, else uniform noise."""
    if task.shape == (1, 28, 28):
        digits = embedded_digits()[0].astype(np.float32)[:, None] / 255
        return np.ascontiguousarray(np.resize(digits, task.image_shape))
    return np.random.default_rng(0).random(task.image_shape, dtype=np.float32)


def autoencoder_of(task: Task) -> Autoencoder:
    """A Table 8 ``Autoencoder`` with the task's weights, frozen."""
    model = Autoencoder(task.shape[0], task.hidden)
    with torch.no_grad():
        for parameter, weight in zip(model.weights(), task.weights, strict=True):
            parameter.copy_(weight)
    return model.requires_grad_(False).eval()


def expected(task: Task, images: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The task without noise on ``images`` (B, C, H, W) in ``dtype``: what contenders are held against."""
    return differentiable_chain(task.noiseless(), torch.from_numpy(images).to(dtype))


def differentiable_chain(task: Task, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The task by the reference operations in the dtype of ``x`` (B, C, H, W), through autograd; noise from torch.

    ``forward`` stands in for r(x), which by default is the reference's.
    """
    weights = [weight.to(x.dtype) for weight in task.weights]
    lows, highs = final_bounds(task.n_steps)
    return reference.langevin_chain(
        x,
        forward or (lambda state: reference.autoencoder_forward(state, weights)),
        task.step_sizes,
        task.noise_scales,
        lows=lows,
        highs=highs,
        noise=lambda _step: torch.randn(x.shape, dtype=x.dtype),
    )


def final_bounds(n_steps: int) -> tuple[Sequence[float], Sequence[float]]:
    """Clamp bounds of every step: none but after the last."""
    infinity = float("inf")
    return [-infinity] * (n_steps - 1) + [LOW], [infinity] * (n_steps - 1) + [HIGH]
