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

from fastmalade.backends.arguments import (
    IMAGES,
    PLAIN_TYPES,
    WRITTEN_TO,
    checked_model,
    checked_seed,
    checked_tensor,
    diverged,
    like,
)
from fastmalade.backends.cpu.extension import environment as environment
from fastmalade.backends.cpu.extension import isa_in_use as isa_in_use
from fastmalade.backends.cpu.extension import isas_built as isas_built
from fastmalade.backends.cpu.extension import isas_supported as isas_supported
from fastmalade.backends.cpu.extension import load as load
from fastmalade.backends.cpu.extension import unavailable_reason as unavailable_reason
from fastmalade.backends.cpu.noise import first_outside as first_outside
from fastmalade.backends.cpu.noise import philox_words as philox_words
from fastmalade.backends.cpu.noise import standard_normal as standard_normal
from fastmalade.backends.gradient_plan import GradientPlan, Sizes, make_plan
from fastmalade.backends.values import NoiseSource, Step, Steps
from fastmalade.models.table8 import TABLE_8

DLPACK_TABLE = getattr(Tensor, "__dlpack_c_exchange_api__", None)
"""DLPack's table of C functions, in versions of torch that have it: eleven tensors are then read in one call."""
_reader: tuple[ModuleType, Any] | None = None  # what finds weights, and the extension that it is of
DEFAULT_THREAD_BYTES = 8 * 2**20
"""Working memory of a gradient that each thread may take where no budget is given and ten steps need no more."""


def langevin_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    trajectory: bool = False,
    form: str = "auto",
) -> Tensor:
    """All N steps x <- clamp(x + a_t (r(x) - x) + d_t z_t, low_t, high_t), r a Table 8 autoencoder (000).

    ``x`` float32 (B, C, H, W) of any strides, H and W multiples of 4; ``weights`` the ten float32 tensors of
    ``Autoencoder.weights()``; the seed of ``noise`` is a number. ``form`` "throughput", "quad" or "latency" forces one
    of the kernels, which give the same bits.

    Returns float32 (B, C, H, W), or with ``trajectory`` (N + 1, B, C, H, W) whose entry 0 is x. Raises
    ValueError for arguments that do not fit and BackendUnavailableError without the extension.
    """
    x, model, _alive = _model(x, weights)
    out = torch.empty((steps.n_steps + 1, *x.shape), dtype=torch.float32) if trajectory else like(x)
    seed, ids, given, _kept = _source(x, steps, noise)
    load().langevin_chain(
        model, isa_in_use(), form, native_steps(steps), seed, ids, given, out.data_ptr(), trajectory, False,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def inspected_chain(x: Tensor, model: Any, steps: Steps, noise: NoiseSource, inspect: bool) -> Tensor | None:
    """:func:`langevin_chain` for the arrays of :func:`plain_model`, with a look at their values where wanted.

    Args:
        x: float32 (B, C, H, W), the images that ``model`` was made of.
        model: of :func:`plain_model`; the caller keeps its weights alive.
        steps, noise: as for the chain.
        inspect: run only if every value of x lies in [0, 1], and look through the result.

    Returns:
        float32 (B, C, H, W), or None where a value of x lies outside [0, 1].

    Raises:
        FloatingPointError: the result is not finite.
    """
    out = torch.empty_like(x)
    seed, ids, given, _kept = _source(x, steps, noise)
    outcome = load().langevin_chain(
        model, isa_in_use(), "auto", native_steps(steps), seed, ids, given, out.data_ptr(), False, inspect,
        torch.get_num_threads(),
    )  # fmt: skip
    if outcome == "diverged":
        raise diverged(out)
    return None if outcome == "outside" else out


def chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    max_bytes: int | None = None,
    form: str = "auto",
) -> Tensor:
    """Vector-Jacobian product of :func:`langevin_chain` with respect to x, for the noise that it drew.

    ``cotangent`` float32 (B, C, H, W), the gradient with respect to the result; ``max_bytes`` the budget of
    :func:`gradient_plan`; the rest and the errors as for the chain. The noise is drawn again from its counters. Returns
    float32 (B, C, H, W).
    """
    return _chain_gradient(cotangent, x, weights, steps, noise, None, max_bytes, form)


def chain_and_weight_gradients(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    max_bytes: int | None = None,
    form: str = "auto",
) -> tuple[Tensor, Tensor]:
    """:func:`chain_gradient`, the same bits, and the gradient with respect to the ten weights.

    Returns float32 (B, C, H, W) and all ten gradients one after the other, in the order of the weights. An image's
    share of these has the same bits in every batch; shares are added in double precision in the order of the batch, and
    the sum is rounded once. So threads, forms and budgets change no bit, and another order of the images the last ones.
    """
    total = torch.empty(sum(weight.numel() for weight in weights), dtype=torch.float32)
    return _chain_gradient(cotangent, x, weights, steps, noise, total, max_bytes, form), total


def _chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    of_weights: Tensor | None,
    max_bytes: int | None,
    form: str,
) -> Tensor:
    x, model, _alive = _model(x, weights)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape)
    hidden = (weights[0].shape[0], weights[2].shape[0])
    plan = gradient_plan(x.shape, hidden, steps.n_steps, max_bytes, weights=of_weights is not None)
    gradient = like(x)
    seed, ids, given, _kept = _source(x, steps, noise)
    load().chain_gradient(
        model, isa_in_use(), form, native_steps(steps), seed, ids, given, cotangent.data_ptr(), gradient.data_ptr(),
        0 if of_weights is None else of_weights.data_ptr(), plan.numbers(), plan.checkpoints, plan.records,
        torch.get_num_threads(),
    )  # fmt: skip
    return gradient


class RecordedChain:
    """A chain with the activations of all its steps kept: the gradient then runs nothing again.

    Attributes:
        nbytes: memory that the activations take.
    """

    def __init__(self, call: Any, shape: Sequence[int]) -> None:
        self._call = call
        self._shape = shape

    @property
    def nbytes(self) -> int:
        return int(self._call.nbytes)

    def weights_written_to(self) -> bool:
        """Whether a weight was written to since."""
        return bool(self._call.weights_written_to())

    def gradient(self, cotangent: Tensor) -> Tensor:
        """Vector-Jacobian product with respect to x; RuntimeError where a weight was written to since."""
        cotangent = checked_tensor("cotangent", cotangent, torch.float32, self._shape)
        gradient = torch.empty_like(cotangent)  # which is contiguous
        if not load().chain_reverse(self._call, cotangent.data_ptr(), gradient.data_ptr(), torch.get_num_threads()):
            raise RuntimeError(WRITTEN_TO)
        return gradient


def recorded_chain(
    x: Tensor, weights: Sequence[Tensor], steps: Steps, noise: NoiseSource, *, form: str = "auto"
) -> tuple[Tensor, RecordedChain]:
    """:func:`langevin_chain` and what its gradient will need; arguments and errors as for the chain."""
    x, model, _alive = _model(x, weights)
    found = recorded_chain_of(x, model, steps, noise, form=form)
    assert found is not None
    return found


def recorded_chain_of(
    x: Tensor, model: Any, steps: Steps, noise: NoiseSource, most_bytes: int | None = None, *, form: str = "auto"
) -> tuple[Tensor, RecordedChain] | None:
    """:func:`recorded_chain` for the arrays of :func:`plain_model`.

    None, and nothing is run, where there are no steps or activations would take more than ``most_bytes``.
    """
    out = torch.empty_like(x)
    seed, ids, given, _kept = _source(x, steps, noise)
    recorded = load().recorded_chain(
        model, isa_in_use(), form, native_steps(steps), seed, ids, given, out.data_ptr(), torch.get_num_threads(),
        -1 if most_bytes is None else most_bytes,
    )  # fmt: skip
    return None if recorded is None else (out, RecordedChain(recorded, x.shape))


def gradient_plan(
    x_shape: Sequence[int],
    hidden_channels: Sequence[int],
    n_steps: int,
    max_bytes: int | None = None,
    *,
    weights: bool = False,
) -> GradientPlan:
    """What :func:`chain_gradient` keeps and runs again for images (B, C, H, W) under a budget of working memory.

    With ``weights`` that of :func:`chain_and_weight_gradients`.
    """
    batch, channels, height, width = x_shape
    workers = max(1, min(torch.get_num_threads(), batch))
    sizes = _sizes(isa_in_use(), (channels, height, width, *hidden_channels), workers, weights)
    return make_plan(n_steps, sizes, max_bytes, default_bytes=DEFAULT_THREAD_BYTES * workers)


@functools.lru_cache(maxsize=256)
def _sizes(isa: str, shape: tuple[int, ...], workers: int, weights: bool) -> Sizes:
    found = load().gradient_bytes(isa, list(shape), weights)
    return Sizes(found["fixed"] + found["weight_sums"], found["state"], found["record"], workers)


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
    x, model, _alive = _model(x, weights)
    if cotangent is not None:
        cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape)
    out, given = like(x), 0 if cotangent is None else cotangent.data_ptr()
    load().autoencoder_gradient(model, isa_in_use(), form, given, scale, own, out.data_ptr(), torch.get_num_threads())
    return out


def autoencoder_forward(x: Tensor, weights: Sequence[Tensor], *, form: str = "auto") -> Tensor:
    """r(x) of a Table 8 autoencoder (paper 000): float32 (B, C, H, W) in and out; raises as the chain."""
    x, model, _alive = _model(x, weights)
    out = torch.empty(x.shape, dtype=torch.float32)
    load().autoencoder_forward(model, isa_in_use(), form, out.data_ptr(), torch.get_num_threads())
    return out


def langevin_update(x: Tensor, reconstruction: Tensor, step: Step, noise: NoiseSource) -> Tensor:
    """One step clamp(x + a (r - x) + d z, low, high) for an r(x) computed elsewhere, in one pass over memory.

    ``x`` and ``reconstruction`` float32 of one shape (B, ...) and any strides; drawn noise is that of
    :func:`standard_normal` to the bit, given noise of the shape of ``x``. Returns float32 of the shape of ``x``.
    Raises ValueError for arguments that do not fit.
    """
    extension = load()
    x = checked_tensor("x", x, torch.float32, x.shape)
    reconstruction = checked_tensor("reconstruction", reconstruction, torch.float32, x.shape)
    batch = x.shape[0]
    seed, ids, given = noise
    if ids is not None:
        ids = checked_tensor("sample_ids", ids, torch.int64, (batch,))
    if given is not None:
        given = checked_tensor("noise", given, torch.float32, x.shape)
    out = like(x)
    extension.langevin_update(
        isa=isa_in_use(),
        batch=batch,
        elements=x.numel() // batch if batch else 0,
        x=x.data_ptr(),
        reconstruction=reconstruction.data_ptr(),
        step_size=step.step_size,
        noise_scale=step.noise_scale,
        low=step.low,
        high=step.high,
        seed=checked_seed(seed),  # type: ignore[arg-type]
        sample_ids=0 if ids is None else ids.data_ptr(),
        step=step.number,
        noise=0 if given is None else given.data_ptr(),
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


def plain_model(x: Tensor, weights: tuple[Tensor, ...]) -> Any | None:
    """The extension's form of images and weights that are plain float32 tensors of the right shapes, else None.

    ``x`` (B, C, H, W), B >= 1; ``weights`` the ten of ``Autoencoder.weights()``. It keeps the weights alive, and holds
    the address of the images: the caller keeps these.
    """
    return None if DLPACK_TABLE is None else load().read_model(DLPACK_TABLE, PLAIN_TYPES, x, weights)


def model_of(x: Tensor, network: object) -> Any | None:
    """:func:`plain_model` for the weights of a network; None also where that is not exactly Table 8."""
    global _reader
    extension = load()
    if _reader is None or _reader[0] is not extension:
        if DLPACK_TABLE is None:
            return None
        _reader = (extension, extension.NetworkReader(DLPACK_TABLE, PLAIN_TYPES, TABLE_8))
    return _reader[1].read(x, network)


def _model(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Any, object]:
    """x, the extension's form of it and of the weights, and what keeps the arrays alive that this points to."""
    model = plain_model(x, tuple(weights))
    if model is not None:
        return x, model, weights
    x = checked_tensor("x", x, torch.float32, IMAGES)
    arrays, sizes = checked_model(weights, x)
    addresses = [array.data_ptr() for array in arrays]
    return x, load().Model(x.shape[0], sizes, addresses, x.data_ptr()), arrays


def _source(x: Tensor, steps: Steps, noise: NoiseSource) -> tuple[int, int, int, object]:
    """Seed, addresses of sample ids and of given noise (0 for none), and what keeps the arrays alive."""
    seed, ids, given = noise
    seed = checked_seed(seed)  # type: ignore[arg-type]
    if ids is None and given is None:
        return seed, 0, 0, None
    if ids is not None:
        ids = checked_tensor("sample_ids", ids, torch.int64, (x.shape[0],))
    if given is not None:
        given = checked_tensor("noise", given, torch.float32, (steps.n_steps, *x.shape))
    return seed, 0 if ids is None else ids.data_ptr(), 0 if given is None else given.data_ptr(), (ids, given)


_native_steps: dict[int, tuple[Steps, Any]] = {}


def native_steps(steps: Steps) -> Any:
    """The extension's own form of steps, kept for recent ones; ValueError where they do not fit together."""
    known = _native_steps.get(id(steps))
    if known is not None and known[0] is steps:
        return known[1]
    native = load().Steps(*steps)
    if len(_native_steps) >= 64:
        _native_steps.clear()
    # Kept together with the steps, so that no other steps can get their id.
    _native_steps[id(steps)] = (steps, native)
    return native
