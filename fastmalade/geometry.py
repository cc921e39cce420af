"""Balls around images: projection, steepest directions, random points, and the check that a result lies inside.

Everything works per image on (B, C, H, W) and draws random numbers from Philox by (seed, sample id), so that the result
for an image does not depend on the batch it is in.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from fastmalade import reference

Norm = Literal["linf", "l2", "l1"]

# Share of the components that one L1 step moves. The steepest direction in L1 moves a single pixel, which needs as
# many steps as there are pixels; SLIDE (Tramer and Boneh 2019, sec. 5) moves the largest percent of them at once.
L1_STEP_SHARE = 0.01


def check_norm(norm: str) -> Norm:
    """``norm`` if it is one of "linf", "l2", "l1"; upper case is accepted.

    Raises:
        ValueError: anything else.
    """
    for known in get_args(Norm):
        if isinstance(norm, str) and norm.lower() == known:
            return known
    raise ValueError(f"norm: expected one of {', '.join(get_args(Norm))}, got {norm!r}")


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def size(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each perturbation: (B, C, H, W) to float64 (B,)."""
    flat = delta.double().flatten(1)
    if norm == "linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    return flat.square().sum(1).sqrt() if norm == "l2" else flat.abs().sum(1)


def project(delta: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest point, in L2, of the ball of radius ``epsilon`` around 0; (B, C, H, W) to the same.

    L1 uses the threshold of Duchi et al. (2008), found by sorting.
    """
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    if norm == "l2":
        norms = delta.flatten(1).norm(dim=1)
        return delta * _per_image((epsilon / norms.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0), delta)
    magnitudes = delta.flatten(1).abs()
    ordered = magnitudes.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - epsilon
    ranks = torch.arange(1, ordered.shape[1] + 1, dtype=delta.dtype, device=delta.device)
    kept = (ordered * ranks > excess).sum(1).clamp_min(1)
    threshold = (excess.gather(1, kept[:, None] - 1)[:, 0] / kept).clamp_min(0.0)
    return delta.sign() * (delta.abs() - _per_image(threshold, delta)).clamp_min(0.0)


def into_ball(x: Tensor, centre: Tensor, epsilon: float, norm: Norm, value_range: tuple[float, float]) -> Tensor:
    """Project ``x`` into the ball around ``centre``, then clip to the range.

    Clipping keeps the point in the ball: the centre is in range, so each component only moves towards it.
    """
    return (centre + project(x - centre, epsilon, norm)).clamp(*value_range)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Direction of unit ``norm`` in which a linear function with this gradient rises fastest; zero for a zero gradient.

    Linf: the sign. L2: the gradient over its length. L1: signs on the ``L1_STEP_SHARE`` largest components, scaled
    to L1 norm 1.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        # Scaled first: the square of a tiny gradient would underflow.
        flat = gradient.flatten(1)
        scaled = gradient / _per_image(flat.abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        length = scaled.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return scaled / _per_image(length, gradient)
    flat = gradient.flatten(1)
    count = max(1, math.ceil(L1_STEP_SHARE * flat.shape[1]))
    largest = flat.abs().topk(count, dim=1).indices
    signs = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).reshape(gradient.shape)


def uniforms(seed: int, sample_ids: Tensor, step: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform numbers strictly inside (0, 1) from Philox words, (B, *shape) in the dtype of ``like``."""
    count = math.prod(shape)
    words = reference.philox_words(seed, sample_ids, step, count)[:, :count]
    values = ((words >> 9).to(torch.float64) + 0.5) * 2.0**-23
    return values.to(dtype=like.dtype, device=like.device).reshape(len(sample_ids), *shape)


def normals(seed: int, sample_ids: Tensor, step: int, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape and dtype of ``like`` (B, C, H, W)."""
    return reference.standard_normal(seed, sample_ids, step, like.shape[1:], dtype=like.dtype, device=like.device)


def random_point(seed: int, sample_ids: Tensor, like: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """A point drawn uniformly from the ball of radius ``epsilon`` around 0, one per image.

    L2: a normal direction and the radius u^(1/d). L1: signed exponentials over the sum of d + 1 of them.
    """
    shape = tuple(like.shape[1:])
    count = math.prod(shape)
    if norm == "linf":
        return (2.0 * uniforms(seed, sample_ids, 0, shape, like) - 1.0) * epsilon
    if norm == "l2":
        direction = steepest(normals(seed, sample_ids, 0, like), "l2")
        radius = epsilon * uniforms(seed, sample_ids, 1, (1,), like)[:, 0] ** (1.0 / count)
        return direction * _per_image(radius, like)
    exponentials = -uniforms(seed, sample_ids, 0, (count + 1,), like).log()
    shares = (exponentials[:, :count] / exponentials.sum(1, keepdim=True)).reshape(like.shape)
    signs = (uniforms(seed, sample_ids, 1, shape, like) - 0.5).sign()
    return epsilon * signs * shares


def check_inside(x: Tensor, centre: Tensor, epsilon: float, norm: Norm, value_range: tuple[float, float]) -> None:
    """Verify that attacked images lie in the ball and in the range, up to the rounding of their dtype.

    Args:
        x: attacked images (n, C, H, W).
        centre: the images attacked, same shape.

    Raises:
        RuntimeError: an image outside either, or not finite: a bug in the attack, never in its input.
    """
    if not bool(torch.isfinite(x).all()):
        raise RuntimeError("attacked images: expected finite values, got NaN or infinity")
    if x.numel() == 0:
        return
    low, high = value_range
    # As the dtype holds them: that is what a clamp to the range gives.
    held_low, held_high = torch.tensor(value_range, dtype=x.dtype).tolist()
    if float(x.min()) < held_low or float(x.max()) > held_high:
        raise RuntimeError(
            f"attacked images: expected values in [{low}, {high}], got {float(x.min())} to {float(x.max())}"
        )
    largest = float(size(x - centre, norm).max())
    # Each component of x is rounded once in projection and once when the centre is added back.
    spacing = 2.0 * torch.finfo(x.dtype).eps * max(abs(low), abs(high), epsilon)
    count = math.prod(x.shape[1:])
    slack = spacing * {"linf": 1.0, "l2": math.sqrt(count), "l1": float(count)}[norm]
    if largest > epsilon + slack:
        raise RuntimeError(f"attacked images: expected a {norm} distance of at most {epsilon}, got {largest}")
