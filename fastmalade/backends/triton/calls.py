"""The Triton backend: CUDA tensors in, CUDA tensors out, over the kernels in ``kernels/triton``.

Triton is imported on first use, so importing this file never fails. Under TRITON_INTERPRET=1 the kernels run on the
CPU, slowly, in Triton's interpreter: that is how they are tested without a GPU.

A chain needs ``chain.bytes_per_image`` of working memory per image. Batches that would need more than
``MAX_WORKING_BYTES`` are computed in parts, which changes no bit of a result.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import IMAGES, checked_model, checked_precision, checked_seed, checked_tensor
from fastmalade.backends.extensions import BackendUnavailableError
from fastmalade.backends.values import NoiseSource, Step, Steps

MAX_WORKING_BYTES = 2**30
"""Working memory that one call may take on the device, in bytes."""


def interpreted() -> bool:
    """Whether this process runs Triton kernels in the interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in {"", "0"}


def unavailable_reason() -> str | None:
    """None if Triton kernels can run here, else why they cannot."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device (on the CPU the kernels run only under TRITON_INTERPRET=1, for tests)"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < (8, 0):
        return f"expected a device of compute capability 8.0 or newer, got {capability[0]}.{capability[1]}"
    return None


def langevin_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    trajectory: bool = False,
    precision: str = "fp32",
) -> Tensor:
    """All N steps x <- clamp(x + a_t (r(x) - x) + d_t z_t, low_t, high_t), r a Table 8 autoencoder (000).

    ``x`` float32 (B, C, H, W) of any strides on a CUDA device, H and W multiples of 4; ``weights`` the ten
    float32 tensors of ``Autoencoder.weights()`` on that device; a tensor as the seed of ``noise`` is read on the device
    when the kernels run. ``precision``: one of ``arguments.PRECISIONS``.

    Returns float32 (B, C, H, W), or with ``trajectory`` (N + 1, B, C, H, W) whose entry 0 is x. Raises
    ValueError for arguments that do not fit and BackendUnavailableError where Triton cannot run.
    """
    call = _Call(x, weights, steps, noise, precision)
    x, n_steps = call.x, steps.n_steps
    out = torch.empty((n_steps + 1, *x.shape), dtype=x.dtype, device=x.device) if trajectory else torch.empty_like(x)
    if n_steps == 0 or x.numel() == 0:
        return out.copy_(x)
    from fastmalade.backends.triton import chain as triton_chain

    def part(model: Any, images: slice, drawn: Any) -> None:
        if not trajectory:
            triton_chain.run(x[images], model, steps, drawn, out[images])
            return
        for state, place in zip(triton_chain.states(x[images], model, steps, drawn), out, strict=True):
            place[images].copy_(state.inside)

    call.in_parts(part, keeps_states=trajectory)
    return out


def chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    max_bytes: int | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Gradient with respect to ``x`` of :func:`langevin_chain`, for fixed weights and the noise that it drew.

    ``cotangent`` float32 (B, C, H, W), the gradient with respect to the result; other arguments, and errors, as in
    :func:`langevin_chain`. A clamp passes the gradient on inside the closed interval. Each step with cotangent g, after
    the clamp, gives g - a g + a J_r^T g. A batch whose states and activations take more than ``max_bytes`` (None:
    ``MAX_WORKING_BYTES``) is computed in parts of one image or more, with the same bits. Returns float32 (B, C, H, W).
    """
    call = _Call(x, weights, steps, noise, precision)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, call.x.shape, call.x.device)
    out = torch.empty_like(call.x)
    if steps.n_steps == 0 or out.numel() == 0:
        return out.copy_(cotangent)
    from fastmalade.backends.triton import chain as triton_chain

    def part(model: Any, images: slice, drawn: Any) -> None:
        triton_chain.vector_jacobian(cotangent[images], call.x[images], model, steps, drawn, out[images])

    call.in_parts(part, keeps_states=True, backward=True, max_bytes=max_bytes)
    return out


def langevin_update(x: Tensor, reconstruction: Tensor, step: Step, noise: NoiseSource) -> Tensor:
    """One step clamp(x + a (r - x) + d z, low, high) for an r(x) computed elsewhere, in one pass over memory.

    ``x`` and ``reconstruction`` float32 of one shape (B, ...) and any strides; drawn noise is that of
    :func:`standard_normal`, given noise of the shape of ``x``. Returns float32 of the shape of ``x``. Raises what
    :func:`langevin_chain` raises.
    """
    inputs, launch = _update_call(x, reconstruction, step, noise)
    out = torch.empty_like(inputs[0])
    if out.numel() > 0:
        launch("langevin_update_kernel", out=out)
    return out


def langevin_update_vjp(
    cotangent: Tensor, x: Tensor, reconstruction: Tensor, step: Step, noise: NoiseSource
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`langevin_update` with respect to ``x`` and ``reconstruction``: (1 - a) g and a g.

    g is ``cotangent``, of the shape of ``x``, and 0 where the clamp acted; the step is run again to find out where.
    """
    inputs, launch = _update_call(x, reconstruction, step, noise)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape, x.device)
    by_x, by_r = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    if cotangent.numel() > 0:
        launch("langevin_update_vjp_kernel", cotangent=cotangent, x_gradient=by_x, reconstruction_gradient=by_r)
    return by_x, by_r


def standard_normal(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The noise of one step: float32 (B, n_elements), a function of (seed, sample id, step, element) alone.

    ``seed`` 0 to 2^64 - 1 or int64 (1,) with its bits, ``sample_ids`` int64 (B,) on a CUDA device, ``step`` 0
    to 2^32 - 1. Philox4x32-10 words (Salmon et al. 2011) through Box and Muller. Raises ValueError for
    arguments out of range.
    """
    return _noise_kernel("standard_normal_kernel", torch.float32, seed, sample_ids, step, n_elements)


def philox_words(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The words behind ``standard_normal``: int64 (B, 4 ceil(n_elements / 4)), values 0 to 2^32 - 1."""
    return _noise_kernel("philox_words_kernel", torch.int64, seed, sample_ids, step, 4 * -(-n_elements // 4))


class _Call:
    """The checked arguments of a chain, and its computation part by part."""

    def __init__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        steps: Steps,
        noise: NoiseSource,
        precision: str,
    ) -> None:
        _require(x)
        device = x.device
        self.x = checked_tensor("x", x, torch.float32, IMAGES, device)
        if self.x.shape[2] % 4 or self.x.shape[3] % 4:
            raise ValueError(f"x: expected height and width multiples of 4, got {tuple(self.x.shape)}")
        self.weights, _ = checked_model(weights, self.x)
        if len({len(values) for values in steps}) != 1:
            raise ValueError(f"steps: expected N of each, got {[len(values) for values in steps]}")
        _check_finite("step_sizes", *steps.step_sizes)
        _check_finite("noise_scales", *steps.noise_scales)
        for low, high in zip(steps.lows, steps.highs, strict=True):
            _check_bounds(low, high)
        self.precision = checked_precision(precision)
        self.n_steps = steps.n_steps
        self.ids = _ids(noise.sample_ids, self.x.shape[0], device)
        self.seed = _seed(noise.seed, device)
        self.given = noise.given
        if self.given is not None:
            self.given = checked_tensor("noise", self.given, torch.float32, (self.n_steps, *self.x.shape), device)

    def in_parts(
        self,
        part: Callable[[Any, slice, Any], None],
        *,
        keeps_states: bool,
        backward: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        """Calls ``part(model, images, noise)`` for slices of the batch that fit the working memory."""
        from fastmalade.backends.triton import chain as triton_chain
        from fastmalade.backends.triton import stages as triton_stages
        from fastmalade.backends.triton import tiles as triton_tiles

        batch, *shape = self.x.shape
        hidden = (self.weights[0].shape[0], self.weights[2].shape[0])
        each = triton_chain.bytes_per_image(shape, hidden, self.n_steps if keeps_states else 0, backward=backward)
        images = max(1, (max_bytes or MAX_WORKING_BYTES) // each)
        with triton_stages.on(self.x.device):
            tiles = triton_tiles.tiles(device_name(self.x.device))
            model = triton_stages.Model(self.weights, shape, tiles, precision=self.precision, backward=backward)
            for first in range(0, batch, images):
                these = slice(first, min(first + images, batch))
                given = None if self.given is None else self.given[:, these]
                if given is not None and images < batch:
                    given = given.contiguous()
                part(model, these, triton_stages.DeviceNoise(self.seed, self.ids[these], given))


@functools.lru_cache(maxsize=32)
def device_name(device: torch.device) -> str:
    """Name under which tiles are kept: that of the GPU, or "interpreter"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def _update_call(
    x: Tensor, reconstruction: Tensor, step: Step, noise: NoiseSource
) -> tuple[tuple[Tensor, Tensor], Callable[..., None]]:
    """x and r(x), checked and contiguous, and a function that launches a kernel of langevin_update.py on them.

    The function takes the kernel's name and, by name, its other tensors.
    """
    _require(x)
    from fastmalade.backends.triton import stages as triton_stages
    from fastmalade.backends.triton import tiles as triton_tiles
    from fastmalade.kernels.triton import langevin_update as kernels

    device, shape = x.device, x.shape
    x = checked_tensor("x", x, torch.float32, shape, device)
    reconstruction = checked_tensor("reconstruction", reconstruction, torch.float32, shape, device)
    number, step_size, noise_scale, low, high = step
    _check_finite("step_size", step_size)
    _check_finite("noise_scale", noise_scale)
    _check_bounds(low, high)
    ids, seeds = _ids(noise.sample_ids, x.shape[0], device), _seed(noise.seed, device)
    given = None if noise.given is None else checked_tensor("noise", noise.given, torch.float32, shape, device)[None]
    elements = x.numel() // x.shape[0] if x.shape[0] else 0
    kind, values = triton_stages.DeviceNoise(seeds, ids, given).of_step(0, noise_scale, x)
    quads = x.shape[0] * -(-elements // 4)
    bits = _step(number)

    def launch(name: str, **tensors: Tensor) -> None:
        tile = triton_tiles.tiles(device_name(device))["update"]
        with triton_stages.on(device):
            getattr(kernels, name)[(-(-quads // tile.block_m),)](
                **tensors, x=x, reconstruction=reconstruction, noise=values, seed=seeds, sample_ids=ids,
                total_quads=quads, elements=elements, step=bits, step_size=step_size, noise_scale=noise_scale,
                low=low, high=high, NOISE=kind, BLOCK=tile.block_m, **tile.options,
            )  # fmt: skip

    return (x, reconstruction), launch


def _noise_kernel(
    name: str, dtype: torch.dtype, seed: int | Tensor, sample_ids: Tensor, step: int, elements: int
) -> Tensor:
    _require(sample_ids)
    from fastmalade.backends.triton import stages as triton_stages
    from fastmalade.backends.triton import tiles as triton_tiles
    from fastmalade.kernels.triton import langevin_update as kernels

    device = sample_ids.device
    ids = checked_tensor("sample_ids", sample_ids, torch.int64, (None,), device)
    if elements < 0:
        raise ValueError(f"n_elements: expected at least 0, got {elements}")
    out = torch.empty((ids.shape[0], elements), dtype=dtype, device=device)
    quads = ids.shape[0] * -(-elements // 4)
    tile = triton_tiles.tiles(device_name(device))["update"]
    seeds, bits = _seed(seed, device), _step(step)
    if quads > 0:
        with triton_stages.on(device):
            getattr(kernels, name)[(-(-quads // tile.block_m),)](
                seed=seeds, sample_ids=ids, out=out, total_quads=quads, elements=elements, step=bits,
                BLOCK=tile.block_m, **tile.options,
            )  # fmt: skip
    return out


def _require(x: Tensor) -> None:
    """Raises BackendUnavailableError where no Triton kernel can run on this tensor."""
    reason = unavailable_reason()
    if reason is None and x.device.type != ("cpu" if interpreted() else "cuda"):
        wanted = "the cpu, as TRITON_INTERPRET is set" if interpreted() else "a CUDA device"
        reason = f"expected tensors on {wanted}, got {x.device}"
    if reason is not None:
        raise BackendUnavailableError(f"the triton backend cannot run: {reason}")


def _ids(sample_ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
    if sample_ids is None:
        return torch.arange(batch, dtype=torch.int64, device=device)
    return checked_tensor("sample_ids", sample_ids, torch.int64, (batch,), device)


def _seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed's bits where the kernels read them: int64 (1,) on ``device``."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or tuple(seed.shape) != (1,):
            raise ValueError(f"seed: expected an int or torch.int64 of shape (1), got {seed.dtype} {tuple(seed.shape)}")
        return seed.to(device)
    number = checked_seed(seed)
    return torch.tensor([number - 2**64 if number >= 2**63 else number], dtype=torch.int64, device=device)


def _step(step: int) -> int:
    """A step as the signed 32-bit integer of the same bits, so that all launches have the same type."""
    if not 0 <= step < 2**32:
        raise ValueError(f"step: expected 0 to {2**32 - 1}, got {step}")
    return step - 2**32 if step >= 2**31 else step


def _check_finite(name: str, *values: float) -> None:
    for value in values:
        if not abs(value) <= torch.finfo(torch.float32).max:
            raise ValueError(f"{name}: expected finite float32 values, got {value}")


def _check_bounds(low: float, high: float) -> None:
    if not low <= high:
        raise ValueError(f"clamp bounds: expected low <= high, got {low} and {high}")
