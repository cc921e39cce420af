"""The CUDA C++ backend: CUDA tensors in, CUDA tensors out, over the extension module ``fastmalade._cuda``.

All N steps of a chain are one launch on the current stream of the tensors' device, after one that packs the weights;
so is its gradient. Arithmetic is float32, or by ``precision`` in part that of tensor cores (kernels/cuda/README.md).
The extension takes addresses, sizes and a stream handle. Speed: not yet measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.arguments import IMAGES, checked_model, checked_precision, checked_seed, checked_tensor
from fastmalade.backends.cuda.extension import architectures as architectures
from fastmalade.backends.cuda.extension import load
from fastmalade.backends.cuda.extension import unavailable_reason as unavailable_reason
from fastmalade.backends.values import NoiseSource, Step, Steps

DEFAULT_GRADIENT_BYTES = 2**30
"""Device memory that :func:`chain_gradient` may use for states where no budget is given."""


def supports(shape: Sequence[int], hidden_channels: tuple[int, int], *, gradient: bool, device: int = 0) -> str | None:
    """None if images (C, H, W) with these hidden channels fit the chip, else why not.

    The state and activations of one image have to fit the shared memory of a block; weights that do not fit beside
    them are read through the caches. Needs a working device.
    """
    try:
        choice(1, shape, hidden_channels, gradient=gradient, device=device)
    except ValueError as error:
        return str(error)
    return None


def choice(
    batch: int, shape: Sequence[int], hidden_channels: tuple[int, int], *, gradient: bool = False, device: int = 0,
    form: str = "auto", images: int = 0, cluster: int = 0, precision: str = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """How a call would be launched: form, images of a group, blocks that share it, grid, shared memory in bytes.

    ``form`` "digits", "general" or "cluster" forces one, ``images`` and ``cluster`` (blocks of a group) its sizes, here
    and in :func:`langevin_chain`. A ``precision`` other than "fp32" has one form of its own, "tensor", for every batch.
    Raises ValueError, saying what does not fit.
    """
    sizes = [*shape, *hidden_channels]
    checked_precision(precision)
    extension = load()
    request = extension.Request(form, images, cluster, precision)
    return dict(extension.choice(device, sizes, batch, gradient, request))


def langevin_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    trajectory: bool = False,
    form: str = "auto",
    images: int = 0,
    cluster: int = 0,
    precision: str = "fp32",
) -> Tensor:
    """All N steps x <- clamp(x + a_t (r(x) - x) + d_t z_t, low_t, high_t), r a Table 8 autoencoder (000).

    ``x`` float32 (B, C, H, W) on a CUDA device, of any strides, H and W multiples of 4; ``weights`` the ten float32
    tensors of ``Autoencoder.weights()`` on that device; a tensor as the seed of ``noise`` is read when the kernel runs.
    ``form``, ``images`` and ``cluster`` as in :func:`choice`; all forms give the same bits. ``precision``: one of
    ``arguments.PRECISIONS``, for the products of conv2 and deconv1; those on tensor cores take 1x28x28 images with 10
    and 25 hidden channels. In every precision an image gets the same bits in every batch.

    Nothing here waits for the device, and a CUDA graph can record it. Returns float32 (B, C, H, W), or with
    ``trajectory`` (N + 1, B, C, H, W) whose entry 0 is x. Raises ValueError for arguments that do not fit,
    BackendUnavailableError without the extension, RuntimeError with CUDA's message where a launch fails.
    """
    x, arrays, sizes = _model(x, weights, precision)
    n_steps = steps.n_steps
    out = x.new_empty((n_steps + 1, *x.shape)) if trajectory else torch.empty_like(x)
    if trajectory:
        out[0] = x
    elif n_steps == 0:
        out.copy_(x)
    if x.shape[0] == 0 or n_steps == 0:
        return out
    extension = load()
    request = extension.Request(form, images, cluster, precision)
    alive, source = _noise(x, n_steps, noise)
    with torch.cuda.device(x.device):
        call, workspace = _call(x, arrays, sizes, request)
        extension.langevin_chain(
            call, workspace.data_ptr(), x=x.data_ptr(), steps=extension.Steps(*steps), noise=source,
            out=out.data_ptr(), trajectory=trajectory,
        )  # fmt: skip
    del alive
    return out


def autoencoder_forward(
    x: Tensor, weights: Sequence[Tensor], *, form: str = "auto", images: int = 0, cluster: int = 0,
    precision: str = "fp32",
) -> Tensor:  # fmt: skip
    """r(x) of a Table 8 autoencoder (paper 000): float32 (B, C, H, W) in and out. Raises what the chain raises."""
    x, arrays, sizes = _model(x, weights, precision)
    out = torch.empty_like(x)
    if x.shape[0]:
        extension = load()
        with torch.cuda.device(x.device):
            call, workspace = _call(x, arrays, sizes, extension.Request(form, images, cluster, precision))
            extension.autoencoder_forward(call, workspace.data_ptr(), x=x.data_ptr(), out=out.data_ptr())
    return out


def chain_gradient(
    cotangent: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    steps: Steps,
    noise: NoiseSource,
    *,
    max_bytes: int | None = None,
    form: str = "auto",
    images: int = 0,
    cluster: int = 0,
    precision: str = "fp32",
) -> Tensor:
    """Vector-Jacobian product of :func:`langevin_chain` with respect to x, for the noise that it drew.

    ``cotangent`` float32 (B, C, H, W), the gradient with respect to the result. Two launches: the chain, which stores
    its N + 1 states, and the product, which computes the activations of each step again. ``max_bytes`` bounds the
    states' memory (None: ``DEFAULT_GRADIENT_BYTES``): a batch that needs more is computed in parts of one image or
    more, with the same bits. With a ``precision`` other than "fp32" the states are those of that chain, and the product
    is that of the float32 steps at these states: it treats the rounding of operands as a constant, and an element
    counts as clamped where the float32 step would clamp it. Other arguments, and errors, as in :func:`langevin_chain`.
    """
    x, arrays, sizes = _model(x, weights, precision)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape, x.device)
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes: expected at least 1 or None, got {max_bytes}")
    n_steps, batch = steps.n_steps, x.shape[0]
    if batch == 0 or n_steps == 0:
        return cotangent.clone()
    ids, given = noise.sample_ids, noise.given
    ids = torch.arange(batch, device=x.device) if ids is None else ids
    ids = checked_tensor("sample_ids", ids, torch.int64, (batch,), x.device)
    if given is not None:
        given = checked_tensor("noise", given, torch.float32, (n_steps, *x.shape), x.device)
    gradient = torch.empty_like(x)
    extension = load()
    request = extension.Request(form, images, cluster, precision)
    with torch.cuda.device(x.device):
        for part in _parts(batch, (n_steps + 1) * 4 * math.prod(x.shape[1:]), max_bytes or DEFAULT_GRADIENT_BYTES):
            drawn = NoiseSource(noise.seed, ids[part], None if given is None else given[:, part].contiguous())
            states = langevin_chain(
                x[part], arrays, steps, drawn, trajectory=True, form=form, images=images, cluster=cluster,
                precision=precision,
            )  # fmt: skip
            alive, source = _noise(x[part], n_steps, drawn)
            call, workspace = _call(states[0], arrays, sizes, request, gradient=True)
            extension.chain_gradient(
                call, workspace.data_ptr(), states=states.data_ptr(), steps=extension.Steps(*steps), noise=source,
                cotangent=cotangent[part].data_ptr(), gradient=gradient[part].data_ptr(), noise_gradient=0,
            )  # fmt: skip
            del alive, workspace
    return gradient


def autoencoder_vjp(
    cotangent: Tensor, x: Tensor, weights: Sequence[Tensor], *, form: str = "auto", images: int = 0, cluster: int = 0
) -> Tensor:
    """J_r(x)^T cotangent, the vector-Jacobian product of r alone: float32 (B, C, H, W) in and out, in one launch.

    ``form``, ``images`` and ``cluster`` as in :func:`choice` for a gradient. Raises what the chain raises.
    """
    x, arrays, sizes = _model(x, weights)
    cotangent = checked_tensor("cotangent", cotangent, torch.float32, x.shape, x.device)
    out = torch.empty_like(x)
    if x.shape[0]:
        extension = load()
        # One step of size 1 without noise or bounds is r(x) itself; its state is x.
        steps = extension.Steps([1.0], [0.0], [-math.inf], [math.inf])
        with torch.cuda.device(x.device):
            request = extension.Request(form, images, cluster)
            call, workspace = _call(x, arrays, sizes, request, gradient=True)
            extension.chain_gradient(
                call, workspace.data_ptr(), states=x.data_ptr(), steps=steps, noise=extension.NoiseSource(),
                cotangent=cotangent.data_ptr(), gradient=out.data_ptr(), noise_gradient=0,
            )  # fmt: skip
    return out


def reconstruction_error_gradient(
    x: Tensor, weights: Sequence[Tensor], *, form: str = "auto", images: int = 0, cluster: int = 0
) -> Tensor:
    """Gradient of ||x - r(x)||^2 with respect to x, through r (003 eq. 8): float32 (B, C, H, W), in one launch.

    Arguments as :func:`autoencoder_vjp`.
    """
    x, arrays, sizes = _model(x, weights)
    out = torch.empty_like(x)
    if x.shape[0]:
        extension = load()
        with torch.cuda.device(x.device):
            request = extension.Request(form, images, cluster)
            call, workspace = _call(x, arrays, sizes, request, gradient=True)
            extension.reconstruction_error_gradient(call, workspace.data_ptr(), x=x.data_ptr(), gradient=out.data_ptr())
    return out


def langevin_update(x: Tensor, reconstruction: Tensor, step: Step, noise: NoiseSource) -> Tensor:
    """One step clamp(x + a (r - x) + d z, low, high) for an r(x) computed elsewhere, in one pass over memory.

    ``x`` and ``reconstruction`` float32 of one shape (B, ...) on one CUDA device; drawn noise is that of
    :func:`standard_normal` to the bit, given noise of the shape of ``x``. Returns float32 of the shape of ``x``.
    """
    extension = load()
    _check_device(x)
    x = checked_tensor("x", x, torch.float32, x.shape, x.device)
    reconstruction = checked_tensor("reconstruction", reconstruction, torch.float32, x.shape, x.device)
    alive, source = _noise(x, None, noise)
    out = torch.empty_like(x)
    batch = x.shape[0]
    with torch.cuda.device(x.device):
        extension.langevin_update(
            _index(x), _stream(), batch=batch, elements=x.numel() // batch if batch else 0, x=x.data_ptr(),
            reconstruction=reconstruction.data_ptr(), noise=source, out=out.data_ptr(),
            step=extension.Step(**step._asdict()),
        )  # fmt: skip
    del alive
    return out


def standard_normal(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The noise of one step: float32 (B, n_elements), a function of (seed, sample id, step, element) alone.

    ``seed`` 0 to 2^64 - 1 or int64 (1,) on the device, ``sample_ids`` int64 (B,) on a CUDA device, ``step`` 0 to
    2^32 - 1. Philox4x32-10 words (Salmon et al. 2011) through Box and Muller. Raises ValueError for arguments out of
    range.
    """
    return _draw(seed, sample_ids, step, n_elements, words=False)


def philox_words(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int) -> Tensor:
    """The words behind ``standard_normal``: int64 (B, 4 ceil(n_elements / 4)), values 0 to 2^32 - 1."""
    return _draw(seed, sample_ids, step, n_elements, words=True)


def _draw(seed: int | Tensor, sample_ids: Tensor, step: int, n_elements: int, *, words: bool) -> Tensor:
    extension = load()
    _check_device(sample_ids)
    ids = checked_tensor("sample_ids", sample_ids, torch.int64, (None,), sample_ids.device)
    if n_elements < 0:
        raise ValueError(f"n_elements: expected at least 0, got {n_elements}")
    if words:
        out = torch.empty((len(ids), 4 * -(-n_elements // 4)), dtype=torch.int64, device=ids.device)
    else:
        out = torch.empty((len(ids), n_elements), dtype=torch.float32, device=ids.device)
    number, pointer = _seed(seed, ids.device)
    with torch.cuda.device(ids.device):
        extension.standard_normal(
            _index(ids), _stream(), batch=len(ids), elements=n_elements, step=step,
            noise=extension.NoiseSource(seed=number, seed_pointer=pointer, sample_ids=ids.data_ptr()),
            z=0 if words else out.data_ptr(), words=out.data_ptr() if words else 0,
        )  # fmt: skip
    return out


def _call(
    x: Tensor, arrays: list[Tensor], sizes: list[int], request: Any, *, gradient: bool = False
) -> tuple[Any, Tensor]:
    """The extension's call on ``x``, and the workspace, which has to live until everything is launched.

    Torch's allocator hands memory on in the order of the stream, so what gets it next comes after the kernels.
    """
    call = load().Call(
        device=_index(x), stream=_stream(), request=request, gradient=gradient, batch=x.shape[0], shape=sizes,
        weights=[w.data_ptr() for w in arrays],
    )  # fmt: skip
    return call, x.new_empty(call.packed_floats)


def _parts(batch: int, bytes_each: int, max_bytes: int) -> Iterator[slice]:
    most = max(1, max_bytes // bytes_each)
    for first in range(0, batch, most):
        yield slice(first, min(first + most, batch))


def _noise(x: Tensor, n_steps: int | None, noise: NoiseSource) -> tuple[list[Tensor], Any]:
    """The extension's noise source, and the tensors whose addresses it holds; ``n_steps`` None for one update."""
    seed, sample_ids, given = noise
    number, pointer = _seed(seed, x.device)
    alive = [seed] if isinstance(seed, Tensor) else []
    if sample_ids is not None:
        sample_ids = checked_tensor("sample_ids", sample_ids, torch.int64, (x.shape[0],), x.device)
        alive.append(sample_ids)
    if given is not None:
        shape = x.shape if n_steps is None else (n_steps, *x.shape)
        given = checked_tensor("noise", given, torch.float32, shape, x.device)
        alive.append(given)
    return alive, load().NoiseSource(
        seed=number,
        seed_pointer=pointer,
        sample_ids=0 if sample_ids is None else sample_ids.data_ptr(),
        given=0 if given is None else given.data_ptr(),
    )


def _seed(seed: int | Tensor, device: torch.device) -> tuple[int, int]:
    """The seed as a number and as an address on the device, one of the two 0."""
    if isinstance(seed, Tensor):
        return 0, checked_tensor("seed", seed, torch.int64, (1,), device).data_ptr()
    return checked_seed(seed), 0


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def _index(x: Tensor) -> int:
    return x.device.index or 0


def _check_device(x: Tensor) -> None:
    if x.device.type != "cuda":
        raise ValueError(f"expected tensors on a cuda device, got {x.device}")


def _model(x: Tensor, weights: Sequence[Tensor], precision: str = "fp32") -> tuple[Tensor, list[Tensor], list[int]]:
    """x and the ten weights, contiguous, and the sizes (channels, height, width, hidden1, hidden2) they agree on."""
    load()
    _check_device(x)
    checked_precision(precision)
    x = checked_tensor("x", x, torch.float32, IMAGES, x.device)
    arrays, sizes = checked_model(weights, x)
    return x, arrays, sizes
