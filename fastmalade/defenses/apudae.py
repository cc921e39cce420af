"""APuDAE: descent on the reconstruction error of a denoising autoencoder (paper 003)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.chain.reconstruction import autoencoder_vjp, reconstruct, reconstruction_error_gradient
from fastmalade.checks import check_count
from fastmalade.defenses.base import Cost, Defense, StatedGradient
from fastmalade.defenses.unrolled import State, inner_gradient, iterate
from fastmalade.models import Autoencoder
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.flops import network_flops
from fastmalade.models.table8 import is_native_autoencoder
from fastmalade.noise import normals_like

Variant = Literal["direct", "A", "B", "C", "D", "E", "F", "G"]


class Apudae(Defense):
    """n steps of x <- x - alpha w, where w follows the gradient of the reconstruction error d(x) = |x - r(x)|^2.

    The error is summed over pixels. With L the loss, g its gradient and w_i = beta w_{i-1} + (1 - beta) g:

    - "direct": x -> r(x), no steps.
    - "A": L = d, w = g (eq. 8).
    - "B": L = d, with beta (eq. 9; the paper calls it Adam, but prints only the first moment).
    - "C": as B, with alpha (1 - exp(-((d - mu) / sigma)^2)) for alpha; eq. 10 prints the image where d must be meant.
    - "D": L = |d - mu| / sigma (eq. 11).
    - "E": L = max(d - mu, 0) / sigma.
    - "F": as E, with L(x, r(x + gamma z)), fresh normal z at each step (eq. 12).
    - "G": as E, after a random rotation and resizing of the image, which is not undone (eq. 13).

    The result is clamped to the range of the images. The paper calls the purification non-differentiable; here its
    gradient, which takes products with the Hessian of d, is exact.

    Args:
        autoencoder: r, (B, C, H, W) -> (B, C, H, W) on [0, 1].
        variant: see above.
        n_steps: n, >= 0; 15 for MNIST in the paper.
        step_size: alpha; 0.01 for MNIST in the paper.
        momentum: beta in [0, 1).
        noise_scale: gamma >= 0.
        max_angle: rotations of "G" are uniform within this many degrees.
        max_resize: factors of "G" are uniform within 1 - max_resize to 1 + max_resize.
        error_mean, error_std: mu and sigma of d over clean images in [0, 1]; see :meth:`calibrate`.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        TypeError, ValueError: an unknown variant, or a number out of its range.

    Source: paper 003, eq. 7 to 13. It gives no beta, gamma, angle or factor: the defaults are ours.
    """

    kind: ClassVar[str] = "apudae"

    def __init__(
        self,
        autoencoder: nn.Module,
        *,
        variant: Variant = "A",
        n_steps: int = 15,
        step_size: float = 0.01,
        momentum: float = 0.9,
        noise_scale: float = 0.05,
        max_angle: float = 10.0,
        max_resize: float = 0.1,
        error_mean: float | None = None,
        error_std: float | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "unrolled",
    ) -> None:
        super().__init__(value_range=value_range, gradient=gradient)
        if variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, got {variant!r}")
        check_count("n_steps", n_steps, 0)
        limits = {
            "step_size": (step_size, math.inf),
            "momentum": (momentum, 1.0),
            "noise_scale": (noise_scale, math.inf),
        }
        limits |= {"max_angle": (max_angle, math.inf), "max_resize": (max_resize, 1.0)}
        for name, (value, limit) in limits.items():
            if not 0.0 <= value < limit:
                raise ValueError(f"{name}: expected a number >= 0 and below {limit}, got {value!r}")
        if (error_mean is None) != (error_std is None) or (error_std is not None and not error_std > 0):
            raise ValueError(f"error_mean, error_std: expected both, error_std > 0, got {error_mean} and {error_std}")
        self.autoencoder = autoencoder
        self.variant: Variant = variant
        self.n_steps, self.step_size, self.momentum = n_steps, step_size, momentum
        self.noise_scale, self.max_angle, self.max_resize = noise_scale, max_angle, max_resize
        self.error_mean, self.error_std = error_mean, error_std

    @property
    def channels(self) -> int | None:
        """C of the images."""
        return getattr(self.autoencoder, "in_channels", None)

    @property
    def multiple(self) -> int:
        """4 for the Table 8 autoencoder, 2 for :class:`SkipDenoiser`."""
        return {Autoencoder: 4, SkipDenoiser: 2}.get(type(self.autoencoder), 1)

    @property
    def is_random(self) -> bool:
        """Only the variants "F" and "G"."""
        return (self.variant == "F" and self.noise_scale > 0) or self.variant == "G"

    @property
    def states_kept(self) -> int:
        """Image and momentum at about 2 sqrt(n_steps) steps."""
        return 4 * (math.isqrt(self.n_steps) + 1)

    @torch.no_grad()
    def errors(self, x: Tensor) -> Tensor:
        """Reconstruction errors d, (B,), of images x (B, C, H, W) in ``value_range``, after mapping these to [0, 1]."""
        self._check(x)
        low, high = self.value_range
        unit = (x - low) / (high - low)
        return (unit - self.autoencoder(unit)).square().flatten(1).sum(1)

    def calibrate(self, images: Tensor) -> tuple[float, float]:
        """Set mu and sigma to mean and standard deviation of the errors of clean training images, and return them.

        Args:
            images: (n, C, H, W) in ``value_range``, n >= 2.

        Raises:
            ValueError: fewer than two images.
        """
        if len(images) < 2:
            raise ValueError(f"images: expected at least 2, got {len(images)}")
        errors = torch.cat([self.errors(part) for part in images.split(500)]).double()
        self.error_mean, self.error_std = float(errors.mean()), float(errors.std())
        return self.error_mean, self.error_std

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """See :meth:`fastmalade.Defense.cost`."""
        check_count("batch", batch, 1)
        self._check_shape((batch, *image_shape))
        forward, gradient = network_flops(self.autoencoder, (1, *image_shape))
        steps = 0 if self.variant == "direct" else self.n_steps
        evaluations = batch * max(steps, int(self.variant == "direct")), batch * steps
        return Cost(evaluations[0] * forward + evaluations[1] * gradient, *evaluations)

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        return {"autoencoder": self.autoencoder}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        names = ("variant", "n_steps", "step_size", "momentum", "noise_scale", "max_angle", "max_resize")
        return {name: getattr(self, name) for name in (*names, "error_mean", "error_std", "gradient")}

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        if self.variant == "direct":
            return self.autoencoder(x).clamp(0.0, 1.0)
        if self.variant == "G":
            x = self._transformed(x, seed, sample_ids)

        def step(_: Tensor, state: State, t: int) -> State:
            return self._step(state, t, seed, sample_ids)

        return iterate(step, self.n_steps, x, (x, torch.zeros_like(x)))[0].clamp(0.0, 1.0)

    def _step(self, state: State, t: int, seed: int | Tensor, sample_ids: Tensor) -> State:
        x, direction = state
        noise = None
        if self.variant == "F" and self.noise_scale > 0:
            noise = self.noise_scale * normals_like(x, seed, sample_ids, t, x.shape[1:])
        gradient, losses = self._gradient(x, noise)
        beta = 0.0 if self.variant == "A" else self.momentum
        direction = beta * direction + (1.0 - beta) * gradient
        rate: float | Tensor = self.step_size
        if self.variant == "C":
            rate = self.step_size * (1.0 - torch.exp(-self._excess(losses).square()))[:, None, None, None]
        return x - rate * direction, direction

    def _gradient(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradient of L, (B, C, H, W), and L, (B,). For "A" and "B", which do not need L, it may be empty."""
        if torch.is_grad_enabled() or not is_native_autoencoder(self.autoencoder):
            (gradient,), losses = inner_gradient(lambda at: self._loss(at[0], noise), (x,))
            return gradient, losses
        if self.variant in ("A", "B"):
            return reconstruction_error_gradient(self.autoencoder, x), x.new_empty(0)
        at = x if noise is None else x + noise
        residual = 2.0 * (x - reconstruct(self.autoencoder, at))
        gradient = residual - autoencoder_vjp(self.autoencoder, at, residual)
        errors = residual.square().flatten(1).sum(1) / 4.0
        if self.variant == "C":
            return gradient, errors
        excess = self._excess(errors)
        assert self.error_std is not None
        slope = (excess.sign() if self.variant == "D" else (excess > 0).to(x.dtype)) / self.error_std
        return slope[:, None, None, None] * gradient, excess

    def _loss(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """L of images (B, C, H, W), (B,)."""
        error = (x - self.autoencoder(x if noise is None else x + noise)).square().flatten(1).sum(1)
        if self.variant in ("A", "B", "C"):
            return error
        excess = self._excess(error)
        return excess.abs() if self.variant == "D" else excess.clamp_min(0.0)

    def _excess(self, errors: Tensor) -> Tensor:
        """(d - mu) / sigma."""
        if self.error_mean is None or self.error_std is None:
            raise ValueError(f"variant {self.variant}: expected error_mean and error_std (call calibrate), got None")
        return (errors - self.error_mean) / self.error_std

    def _transformed(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        # The noise uses steps 0 to n - 1, so n is free. Phi maps normals to uniforms on (0, 1).
        normals = normals_like(x, seed, sample_ids, self.n_steps, (2,))
        uniform = torch.special.ndtr(normals) * 2.0 - 1.0
        angle = uniform[:, 0] * math.radians(self.max_angle)
        scale = 1.0 + self.max_resize * uniform[:, 1]
        # grid_sample's coordinates run from -1 to 1 along each side, whatever its length: the aspect ratio makes this a
        # rotation in pixels.
        aspect = x.shape[2] / x.shape[3]
        cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
        rows = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], dim=1).reshape(-1, 2, 3)
        grid = F.affine_grid(rows, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
