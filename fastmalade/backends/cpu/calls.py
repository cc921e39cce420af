"""The native CPU backend: tensors in, tensors out, over the extension module ``fastmalade._cpu``.

The extension takes addresses and sizes. Threads follow ``torch.get_num_threads()``; instruction sets are those of
:mod:`fastmalade.backends.cpu.extension`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import IMAGES, checked_model, checked_seed, checked_tensor, is_plain, like
from fastmalade.backends.cpu.extension import isa_in_use as isa_in_use
from fastmalade.backends.cpu.extension import isas_built as isas_built
from fastmalade.backends.cpu.extension import isas_supported as isas_supported
from fastmalade.backends.cpu.extension import load as load
from fastmalade.backends.cpu.extension import unavailable_reason as unavailable_reason
from fastmalade.backends.gradient_plan import GradientPlan, Sizes, make_plan

EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
"""DLPack's table of C functions, in versions of torch that have it: eleven tensors are then read in one call."""
DEFAULT_THREAD_BYTES = 8 * 2**20
"""Working memory of a gradient that each thread may take where no budget is given and ten steps need no more."""


def langevin_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None = None,
    trajectory: bool = False,
    form: str = "auto",
) -> Tensor:
    """All N steps x <- clamp(x + a_t (r(x) - x) + d_t z_t, low_t, high_t), r a Table 8 autoencoder (000).

    ``x`` float32 (B, C, H, W) of any strides, H and W multiples of 4; ``weights`` the ten float32 tensors of
    ``Autoencoder.weights()``; four sequences of N floats, -inf and +inf meaning no bound; ``seed`` 0 to 2^64
    - 1; ``sample_ids`` int64 (B,), None for 0..B-1; ``noise`` float32 (N, B, C, H, W) in place of the drawn
    one. Where d_t is 0 no noise is drawn. ``form`` "throughput", "quad" or "latency" forces one of the kernels,
    which give the same bits.

    Returns float32 (B, C, H, W), or with ``trajectory`` (N + 1, B, C, H, W) whose entry 0 is x. Raises
    ValueError for arguments that do not fit and BackendUnavailableError without the extension.
    """
    x, call, _alive = _chain_call(x, weights, step_sizes, noise_scales, lows, highs, seed, sample_ids, noise, form)
    out = torch.empty((len(step_sizes) + 1, *x.shape), dtype=torch.float32) if trajectory else like(x)
    load().langevin_chain(out=out.data_ptr(), trajectory=trajectory, **call)
    return out


def _chain_call(
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None,
    form: str,
) -> tuple[Tensor, dict[str, Any], object]:
    """x, what every chain call of the extension takes, and what keeps its addresses alive."""
    x, address, shape, addresses, alive = _model(load(), x, weights)
    ids = None if sample_ids is None else checked_tensor("sample_ids", sample_ids, torch.int64, (x.shape[0],))
    if noise is not None:
        noise = checked_tensor("noise", noise, torch.float32, (len(step_sizes), *x.shape))
    call = {
        "isa": isa_in_use(),
        "form": form,
        "batch": x.shape[0],
        "shape": shape,
        "weights": addresses,
        "x": address,
        "settings": settings_of(tuple(step_sizes), tuple(noise_scales), tuple(lows), tuple(highs)),
        "seed": checked_seed(seed),
        "sample_ids": 0 if ids is None else ids.data_ptr(),
        "noise": 0 if noise is None else noise.data_ptr(),
        "threads": torch.get_num_threads(),
    }
    return x, call, (alive, ids, noise)


def chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None = None,
    max_bytes: int | None = None,
    form: str = "auto",
) -> Tensor:
    """Vector-Jacobian product of :func:`langevin_chain` with respect to x, for the noise that it drew.

    ``cotangent`` float32 (B, C, H, W), the gradient with respect to the result; ``max_bytes`` the budget of
    :func:`gradient_plan`; the rest and the errors as there. The noise is drawn again from its counters. Returns
    float32 (B, C, H, W).
    """
    x, call, _alive = _chain_call(x, weights, step_sizes, noise_scales, lows, highs, seed, sample_ids, noise, form)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape)
    plan = gradient_plan(x.shape, call["shape"][3:], len(step_sizes), max_bytes)
    gradient = like(x)
    load().chain_gradient(
        cotangent=cotangent.data_ptr(),
        gradient=gradient.data_ptr(),
        actions=plan.numbers(),
        checkpoints=plan.checkpoints,
        records=plan.records,
        **call,
    )
    return gradient


@functools.lru_cache(maxsize=64)
def settings_of(
    step_sizes: tuple[float, ...], noise_scales: tuple[float, ...], lows: tuple[float, ...], highs: tuple[float, ...]
) -> Any:
    """The extension's own form of the settings of a chain; ValueError where they do not fit together."""
    return load().Settings(step_sizes, noise_scales, lows, highs)


class RecordedChain:
    """A chain with the activations of all its steps kept: the gradient then runs nothing again.

    Attributes:
        nbytes: memory that the activations take.
    """

    def __init__(self, call: Any, shape: Sequence[int]) -> None:
        self.nbytes = int(call.nbytes)
        self._call, self._shape = call, shape

    def gradient(self, cotangent: Tensor) -> Tensor:
        """Vector-Jacobian product with respect to x, with the weights that the chain ran with."""
        cotangent = checked_tensor("cotangent", cotangent, torch.float32, self._shape)
        gradient = like(cotangent)
        load().chain_reverse(
            call=self._call,
            cotangent=cotangent.data_ptr(),
            gradient=gradient.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return gradient


def recorded_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    step_sizes: Sequence[float],
    noise_scales: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    seed: int,
    sample_ids: Tensor | None,
    noise: Tensor | None = None,
    form: str = "auto",
) -> tuple[Tensor, RecordedChain]:
    """:func:`langevin_chain` and what a gradient to come needs; arguments and errors as there."""
    x, call, _alive = _chain_call(x, weights, step_sizes, noise_scales, lows, highs, seed, sample_ids, noise, form)
    out = like(x)
    recorded = load().recorded_chain(out=out.data_ptr(), **call)
    return out, RecordedChain(recorded, x.shape)


def recorded_bytes(x_shape: Sequence[int], hidden_channels: tuple[int, int], n_steps: int) -> int:
    """About the memory that :func:`recorded_chain` keeps for images (B, C, H, W): exact for whole groups of images."""
    isa = isa_in_use()
    record = _sizes(isa, (*x_shape[1:], *hidden_channels), 1).record
    return x_shape[0] * n_steps * record // int(load().lanes(isa))


def gradient_plan(
    x_shape: Sequence[int], hidden_channels: Sequence[int], n_steps: int, max_bytes: int | None = None
) -> GradientPlan:
    """What :func:`chain_gradient` keeps and runs again for images (B, C, H, W) under a budget of working memory."""
    batch, channels, height, width = x_shape
    workers = max(1, min(torch.get_num_threads(), batch))
    sizes = _sizes(isa_in_use(), (channels, height, width, *hidden_channels), workers)
    return make_plan(n_steps, sizes, max_bytes, default_bytes=DEFAULT_THREAD_BYTES * workers)


@functools.lru_cache(maxsize=256)
def _sizes(isa: str, shape: tuple[int, ...], workers: int) -> Sizes:
    return Sizes(**load().gradient_bytes(isa, list(shape)), workers=workers)


def autoencoder_vjp(cotangent: Tensor, x: Tensor, weights: Sequence[Tensor], *, form: str = "auto") -> Tensor:
    """J_r(x)^T cotangent, the vector-Jacobian product of r alone: float32 (B, C, H, W) in and out."""
    return _jacobian_product(cotangent, x, weights, 1.0, 0.0, form)


def reconstruction_error_gradient(x: Tensor, weights: Sequence[Tensor], *, form: str = "auto") -> Tensor:
    """Gradient of ||x - r(x)||^2 with respect to x, through r (003 eq. 8): float32 (B, C, H, W) in and out."""
    return _jacobian_product(None, x, weights, -1.0, 1.0, form)


def _jacobian_product(
    cotangent: Tensor | None, x: Tensor, weights: Sequence[Tensor], scale: float, own: float, form: str
) -> Tensor:
    """scale J^T g + own g; without a cotangent g is 2 (x - r(x))."""
    extension = load()
    x, address, shape, addresses, _alive = _model(extension, x, weights)
    if cotangent is not None:
        cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape)
    out = like(x)
    extension.autoencoder_gradient(
        isa=isa_in_use(),
        form=form,
        batch=x.shape[0],
        shape=shape,
        weights=addresses,
        x=address,
        cotangent=0 if cotangent is None else cotangent.data_ptr(),
        scale=scale,
        own=own,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


def autoencoder_forward(x: Tensor, weights: Sequence[Tensor], *, form: str = "auto") -> Tensor:
    """r(x) of a Table 8 autoencoder (paper 000): float32 (B, C, H, W) in and out; raises as the chain."""
    extension = load()
    x, address, shape, addresses, _alive = _model(extension, x, weights)
    out = torch.empty(x.shape, dtype=torch.float32)
    extension.autoencoder_forward(
        isa=isa_in_use(),
        form=form,
        batch=x.shape[0],
        shape=shape,
        weights=addresses,
        x=address,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


def langevin_update(
    x: Tensor,
    reconstruction: Tensor,
    step_size: float,
    noise_scale: float,
    low: float,
    high: float,
    *,
    seed: int,
    sample_ids: Tensor | None,
    step: int,
    noise: Tensor | None = None,
) -> Tensor:
    """One step clamp(x + a (r - x) + d z, low, high) for an r(x) computed elsewhere, in one pass over memory.

    ``x`` and ``reconstruction`` float32 of one shape (B, ...) and any strides; a and d finite; ``seed``,
    ``sample_ids`` and ``step`` as for :func:`standard_normal`, whose noise it is to the bit; ``noise``, of
    the shape of ``x``, in place of the drawn one. Where d is 0 no noise is drawn. Returns float32 of the
    shape of ``x``. Raises ValueError for arguments that do not fit.
    """
    extension = load()
    x = checked_tensor("x", x, torch.float32, x.shape)
    reconstruction = checked_tensor("reconstruction", reconstruction, torch.float32, x.shape)
    batch = x.shape[0]
    ids = None if sample_ids is None else checked_tensor("sample_ids", sample_ids, torch.int64, (batch,))
    if noise is not None:
        noise = checked_tensor("noise", noise, torch.float32, x.shape)
    out = like(x)
    extension.langevin_update(
        isa=isa_in_use(),
        batch=batch,
        elements=x.numel() // batch if batch else 0,
        x=x.data_ptr(),
        reconstruction=reconstruction.data_ptr(),
        step_size=step_size,
        noise_scale=noise_scale,
        low=low,
        high=high,
        seed=checked_seed(seed),
        sample_ids=0 if ids is None else ids.data_ptr(),
        step=step,
        noise=0 if noise is None else noise.data_ptr(),
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


def first_outside(values: Tensor, low: float, high: float) -> int | None:
    """Index, in memory order, of the first of ``values`` that is not within [low, high], -1 for none.

    NaN is within no bounds; the bounds are rounded to float32. None where this pass cannot read the values:
    it takes contiguous float32 tensors on the CPU, and the extension.
    """
    if not is_plain(values, torch.float32) or unavailable_reason() is not None:
        return None
    return int(load().check_range(values.data_ptr(), values.numel(), low, high))


def standard_normal(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The noise of one step: float32 (B, n_elements), a function of (seed, sample id, step, element) alone.

    ``seed`` 0 to 2^64 - 1, ``sample_ids`` int64 (B,), ``step`` 0 to 2^32 - 1. Philox4x32-10 words (Salmon et
    al. 2011) through Box and Muller. Raises ValueError for arguments out of range.
    """
    call, _alive = _noise_call(seed, sample_ids, step, n_elements)
    z = torch.empty((call["batch"], n_elements), dtype=torch.float32)
    load().standard_normal(elements=n_elements, z=z.data_ptr(), **call)
    return z


def philox_words(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The words behind ``standard_normal``: int64 (B, 4 ceil(n_elements / 4)), values 0 to 2^32 - 1."""
    call, _alive = _noise_call(seed, sample_ids, step, n_elements)
    counters = -(-n_elements // 4)
    words = torch.empty((call["batch"], 4 * counters), dtype=torch.int64)
    load().philox_words(counters=counters, words=words.data_ptr(), **call)
    return words


def _noise_call(seed: int, sample_ids: Tensor, step: int, n_elements: int) -> tuple[dict[str, Any], object]:
    """What both noise calls of the extension take, and what keeps the addresses alive."""
    ids = checked_tensor("sample_ids", sample_ids, torch.int64, (None,))
    if n_elements < 0:
        raise ValueError(f"n_elements: expected at least 0, got {n_elements}")
    call = {
        "isa": isa_in_use(), "seed": checked_seed(seed), "sample_ids": ids.data_ptr(), "batch": ids.shape[0],
        "step": step, "threads": torch.get_num_threads(),
    }  # fmt: skip
    return call, ids


def _model(
    extension: ModuleType, x: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, int, list[int], list[int], object]:
    """x, its address, the sizes (channels, height, width, hidden1, hidden2), the addresses of the weights.

    The last entry keeps alive what the addresses point to.
    """
    if EXCHANGE is not None and True not in map(Tensor.is_neg, (x, *weights)):
        found = extension.read_model(EXCHANGE, x, weights)
        if found is not None:
            return x, *found, weights
    x = checked_tensor("x", x, torch.float32, IMAGES)
    arrays, shape = checked_model(weights, x)
    return x, x.data_ptr(), shape, [array.data_ptr() for array in arrays], arrays
