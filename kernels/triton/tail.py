"""The last stage: deconv2, conv3, residual, Langevin update, noise and clamp.

The 1x1 transposed convolution is computed at even positions only; elsewhere it is the constant tanh(bias), part of a
start value per output (start_kernel), as in kernels/cpu/isa/tail.h. A program works on BLOCK patches of two rows of
four pixels: two Philox counters, and 12 even positions whose values are computed once for all eight pixels.
Neighbouring patches compute some of the same values again, which costs about 2% of a step's arithmetic and saves a
launch and a trip through memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import advance, clamp, normals, tanh

NO_NOISE = tl.constexpr(0)
DRAWN = tl.constexpr(1)
GIVEN = tl.constexpr(2)


@triton.jit
def even_value(
    activation, weights2, bias2, channel, row, column, rows, columns, mask, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr
):
    """tanh of deconv2 at the even position (2 row, 2 column) of one channel; 0, as conv3's padding, outside.

    activation: pointers to images (rows, columns, HIDDEN).
    """
    inside = mask & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    place = activation + (row * columns + column) * HIDDEN
    total = tl.zeros_like(row).to(tl.float32) + tl.load(bias2 + channel)
    for k in range(HIDDEN):
        h = tl.load(place + k, mask=inside, other=0.0)
        total = tl.fma(h, tl.load(weights2 + k * CHANNELS + channel), total)
    return tl.where(inside, tanh(total), 0.0)


@triton.jit
def add_row(a0, a1, a2, a3, y0, y1, y2, y3, taps):
    """One kernel row of conv3: pixels 4q to 4q + 3 from the even positions 4q - 2, 4q, 4q + 2, 4q + 4.

    taps: pointer to the five weights of that row.
    """
    w0 = tl.load(taps)
    w1 = tl.load(taps + 1)
    w2 = tl.load(taps + 2)
    w3 = tl.load(taps + 3)
    w4 = tl.load(taps + 4)
    a0 = tl.fma(y2, w4, tl.fma(y1, w2, tl.fma(y0, w0, a0)))
    a1 = tl.fma(y2, w3, tl.fma(y1, w1, a1))
    a2 = tl.fma(y3, w4, tl.fma(y2, w2, tl.fma(y1, w0, a2)))
    a3 = tl.fma(y3, w3, tl.fma(y2, w1, a3))
    return a0, a1, a2, a3


@triton.jit
def reconstruct(
    activation, weights2, bias2, weights3, start, channel, i, q, height, width, mask,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """r(x) at rows 2i and 2i + 1, columns 4q to 4q + 3 of one channel: eight tensors of a program's patches."""
    place = start + (channel * height + 2 * i) * width + 4 * q
    a0 = tl.load(place, mask=mask, other=0.0)
    a1 = tl.load(place + 1, mask=mask, other=0.0)
    a2 = tl.load(place + 2, mask=mask, other=0.0)
    a3 = tl.load(place + 3, mask=mask, other=0.0)
    b0 = tl.load(place + width, mask=mask, other=0.0)
    b1 = tl.load(place + width + 1, mask=mask, other=0.0)
    b2 = tl.load(place + width + 2, mask=mask, other=0.0)
    b3 = tl.load(place + width + 3, mask=mask, other=0.0)
    rows = height // 2
    columns = width // 2
    for source in range(CHANNELS):
        taps = weights3 + (channel * CHANNELS + source) * 25
        # A loop, not unrolled: three times the code would only take more registers.
        for di in range(3):
            row = i + (di - 1)
            y0 = even_value(activation, weights2, bias2, source, row, 2 * q - 1, rows, columns, mask, CHANNELS, HIDDEN)
            y1 = even_value(activation, weights2, bias2, source, row, 2 * q, rows, columns, mask, CHANNELS, HIDDEN)
            y2 = even_value(activation, weights2, bias2, source, row, 2 * q + 1, rows, columns, mask, CHANNELS, HIDDEN)
            y3 = even_value(activation, weights2, bias2, source, row, 2 * q + 2, rows, columns, mask, CHANNELS, HIDDEN)
            # The even rows meet an even output row at the kernel rows 0, 2, 4 and an odd one at 1, 3.
            a0, a1, a2, a3 = add_row(a0, a1, a2, a3, y0, y1, y2, y3, taps + 10 * di)
            # The first of them meets no kernel row of the odd one: it adds zeros (the weights read are those of row 0).
            y0 = tl.where(di > 0, y0, 0.0)
            y1 = tl.where(di > 0, y1, 0.0)
            y2 = tl.where(di > 0, y2, 0.0)
            y3 = tl.where(di > 0, y3, 0.0)
            b0, b1, b2, b3 = add_row(b0, b1, b2, b3, y0, y1, y2, y3, taps + tl.maximum(10 * di - 5, 0))
    return tanh(a0), tanh(a1), tanh(a2), tanh(a3), tanh(b0), tanh(b1), tanh(b2), tanh(b3)


@triton.jit
def free_row(
    r0, r1, r2, r3, state, stride, noise, element, sample_id, step, seed, step_size, noise_scale, mask,
    NOISE: tl.constexpr,
):  # fmt: skip
    """New states before the clamp of four neighbouring pixels whose reconstruction is r0 to r3.

    state: pointers to the first of each four, ``stride`` apart; noise: pointers to its noise; element: its number in
    the image, a multiple of 4.
    """
    x0 = tl.load(state, mask=mask, other=0.0)
    x1 = tl.load(state + stride, mask=mask, other=0.0)
    x2 = tl.load(state + 2 * stride, mask=mask, other=0.0)
    x3 = tl.load(state + 3 * stride, mask=mask, other=0.0)
    if NOISE == NO_NOISE:
        v0 = tl.fma(r0 - x0, step_size, x0)
        v1 = tl.fma(r1 - x1, step_size, x1)
        v2 = tl.fma(r2 - x2, step_size, x2)
        v3 = tl.fma(r3 - x3, step_size, x3)
    else:
        if NOISE == DRAWN:
            z0, z1, z2, z3 = normals(element // 4, step, sample_id, seed)
        else:
            z0 = tl.load(noise, mask=mask, other=0.0)
            z1 = tl.load(noise + 1, mask=mask, other=0.0)
            z2 = tl.load(noise + 2, mask=mask, other=0.0)
            z3 = tl.load(noise + 3, mask=mask, other=0.0)
        v0 = advance(x0, r0, z0, step_size, noise_scale)
        v1 = advance(x1, r1, z1, step_size, noise_scale)
        v2 = advance(x2, r2, z2, step_size, noise_scale)
        v3 = advance(x3, r3, z3, step_size, noise_scale)
    return v0, v1, v2, v3


@triton.jit
def key_and_ids(seed, sample_ids, image, mask, NOISE: tl.constexpr):
    """The seed and each image's sample id, read only where noise is drawn."""
    key = image
    ids = image
    if NOISE == DRAWN:
        key = tl.load(seed)
        ids = tl.load(sample_ids + image, mask=mask, other=0)
    return key, ids


@triton.jit(do_not_specialize=["step"])
def tail_kernel(
    activation,  # (B, H / 2, W / 2, HIDDEN), output of deconv1
    weights2,  # (HIDDEN, CHANNELS, 1, 1)
    bias2,  # (CHANNELS,)
    weights3,  # (CHANNELS, CHANNELS, 5, 5)
    start,  # (CHANNELS, H, W) from start_kernel
    state,  # (B, C, H, W) by its strides
    noise,  # (B, C, H, W) contiguous, read for GIVEN
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    out,  # (B, C, H, W) by its strides; may be the state
    patches,  # B x H / 2 x W / 4
    height,
    width,
    state_image,
    state_channel,
    state_row,
    state_column,
    out_image,
    out_channel,
    out_row,
    out_column,
    step,
    step_size,
    noise_scale,
    low,
    high,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1)
    mask = index < patches
    image = index // ((height // 2) * (width // 4))
    i = (index // (width // 4)) % (height // 2)
    q = index % (width // 4)
    images = activation + image * ((height // 2) * (width // 2) * HIDDEN)
    r00, r01, r02, r03, r10, r11, r12, r13 = reconstruct(
        images, weights2, bias2, weights3, start, channel, i, q, height, width, mask, CHANNELS, HIDDEN
    )
    key, sample_id = key_and_ids(seed, sample_ids, image, mask, NOISE)
    for p in tl.static_range(2):
        y = 2 * i + p
        if p == 0:
            r0, r1, r2, r3 = r00, r01, r02, r03
        else:
            r0, r1, r2, r3 = r10, r11, r12, r13
        element = (channel * height + y) * width + 4 * q
        v0, v1, v2, v3 = free_row(
            r0, r1, r2, r3,
            state + image * state_image + channel * state_channel + y * state_row + 4 * q * state_column,
            state_column, noise + image * (CHANNELS * height * width) + element, element, sample_id, step, key,
            step_size, noise_scale, mask, NOISE,
        )  # fmt: skip
        place = out + image * out_image + channel * out_channel + y * out_row + 4 * q * out_column
        tl.store(place, clamp(v0, low, high), mask=mask)
        tl.store(place + out_column, clamp(v1, low, high), mask=mask)
        tl.store(place + 2 * out_column, clamp(v2, low, high), mask=mask)
        tl.store(place + 3 * out_column, clamp(v3, low, high), mask=mask)


@triton.jit
def start_kernel(
    bias2,  # (CHANNELS,)
    weights3,  # (CHANNELS, CHANNELS, 5, 5)
    bias3,  # (CHANNELS,)
    out,  # (CHANNELS, H, W)
    height,
    width,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the sums of conv3 start: its bias, and the taps that meet tanh(bias) of deconv2 at odd positions."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1)
    y = pixel // width
    x = pixel % width
    total = tl.zeros((BLOCK,), tl.float32) + tl.load(bias3 + channel)
    for source in range(CHANNELS):
        constant = tanh(tl.load(bias2 + source))
        for tap in range(25):
            row = y + tap // 5 - 2
            column = x + tap % 5 - 2
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            is_odd = ((row & 1) | (column & 1)) != 0
            weight = tl.load(weights3 + (channel * CHANNELS + source) * 25 + tap)
            total = tl.fma(tl.where(inside & is_odd, weight, 0.0), constant, total)
    tl.store(out + channel * height * width + pixel, total, mask=pixel < height * width)
