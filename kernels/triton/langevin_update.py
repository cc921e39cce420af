"""The update of one step for an r(x) computed elsewhere and its gradient, each one pass, and the noise by itself.

A quad is the four neighbouring elements of one image whose noise comes from one Philox counter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import advance, clamp, normals, words
from .tail import GIVEN, NO_NOISE


@triton.jit
def _rows(q0, q1, q2, q3, BLOCK: tl.constexpr):
    # A quad is a row, so that a thread loads and stores 16 bytes at once.
    return tl.reshape(tl.join(tl.join(q0, q2), tl.join(q1, q3)), (BLOCK, 4))


@triton.jit
def _place(total_quads, elements, BLOCK: tl.constexpr):
    """Of each quad of a program: its sample, its number there, its elements' offsets, and which of them exist."""
    quads = (elements + 3) // 4
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sample = index // quads
    quad = index % quads
    element = 4 * quad[:, None] + tl.arange(0, 4)[None, :]
    exists = (index < total_quads)[:, None] & (element < elements)
    return sample, quad, sample[:, None] * elements + element, exists


@triton.jit
def _free_update(
    x, offsets, exists, reconstruction, noise, seed, sample_ids, sample, quad, total_quads, elements, step,
    step_size, noise_scale, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The new state before the clamp."""
    state = tl.load(x + offsets, mask=exists, other=0.0)
    r = tl.load(reconstruction + offsets, mask=exists, other=0.0)
    if NOISE == NO_NOISE:
        v = tl.fma(r - state, step_size, state)
    else:
        if NOISE == GIVEN:
            z = tl.load(noise + offsets, mask=exists, other=0.0)
        else:
            is_sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < total_quads
            sample_id = tl.load(sample_ids + sample, mask=is_sample, other=0)
            z0, z1, z2, z3 = normals(quad, step, sample_id, tl.load(seed))
            z = _rows(z0, z1, z2, z3, BLOCK)
        v = advance(state, r, z, step_size, noise_scale)
    return v


@triton.jit(do_not_specialize=["step"])
def langevin_update_kernel(
    x,  # (B, elements)
    reconstruction,  # (B, elements)
    noise,  # (B, elements), read for GIVEN
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    out,  # (B, elements)
    total_quads,  # B x ceil(elements / 4)
    elements,
    step,
    step_size,
    noise_scale,
    low,
    high,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, quad, offsets, exists = _place(total_quads, elements, BLOCK)
    v = _free_update(
        x, offsets, exists, reconstruction, noise, seed, sample_ids, sample, quad, total_quads, elements, step,
        step_size, noise_scale, NOISE, BLOCK,
    )  # fmt: skip
    tl.store(out + offsets, clamp(v, low, high), mask=exists)


@triton.jit(do_not_specialize=["step"])
def langevin_update_vjp_kernel(
    cotangent,  # (B, elements), of the new state
    x,  # (B, elements)
    reconstruction,  # (B, elements)
    noise,  # (B, elements), read for GIVEN
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    x_gradient,  # (B, elements), out
    reconstruction_gradient,  # (B, elements), out
    total_quads,  # B x ceil(elements / 4)
    elements,
    step,
    step_size,
    noise_scale,
    low,
    high,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, quad, offsets, exists = _place(total_quads, elements, BLOCK)
    v = _free_update(
        x, offsets, exists, reconstruction, noise, seed, sample_ids, sample, quad, total_quads, elements, step,
        step_size, noise_scale, NOISE, BLOCK,
    )  # fmt: skip
    g = tl.load(cotangent + offsets, mask=exists, other=0.0)
    # The comparisons of torch.clamp: the bounds belong to the inside, NaN to neither side.
    g = tl.where((v >= low) & (v <= high), g, 0.0)
    tl.store(x_gradient + offsets, (1.0 - step_size) * g, mask=exists)
    tl.store(reconstruction_gradient + offsets, step_size * g, mask=exists)


@triton.jit(do_not_specialize=["step"])
def standard_normal_kernel(
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    out,  # (B, elements)
    total_quads,  # B x ceil(elements / 4)
    elements,
    step,
    BLOCK: tl.constexpr,
):
    sample, quad, offsets, exists = _place(total_quads, elements, BLOCK)
    is_sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < total_quads
    sample_id = tl.load(sample_ids + sample, mask=is_sample, other=0)
    z0, z1, z2, z3 = normals(quad, step, sample_id, tl.load(seed))
    tl.store(out + offsets, _rows(z0, z1, z2, z3, BLOCK), mask=exists)


@triton.jit(do_not_specialize=["step"])
def philox_words_kernel(
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    out,  # (B, elements) int64, elements a multiple of 4
    total_quads,  # B x elements / 4
    elements,
    step,
    BLOCK: tl.constexpr,
):
    sample, quad, offsets, exists = _place(total_quads, elements, BLOCK)
    is_sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) < total_quads
    sample_id = tl.load(sample_ids + sample, mask=is_sample, other=0)
    w0, w1, w2, w3 = words(quad, step, sample_id, tl.load(seed))
    tl.store(out + offsets, _rows(w0, w1, w2, w3, BLOCK).to(tl.int64), mask=exists)
