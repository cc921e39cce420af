"""The tail's vector-Jacobian product in two launches: through the update and conv3's tanh, then back to deconv2.

The step is v = x + a (r(x) - x) + d z and x' = clamp(v). With g the cotangent of x', set to zero where the clamp acted,
that of x is (1 - a) g plus what comes back through r, whose own cotangent is a g. v and r are computed again, noise
included: that costs no memory, and whether v was inside the closed interval cannot be read off x'.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tail import even_value, free_row, key_and_ids, reconstruct


@triton.jit
def _inside(cotangent, v, low, high):
    # The comparisons of torch.clamp: the bounds belong to the inside, NaN to neither side.
    return tl.where((v >= low) & (v <= high), cotangent, 0.0)


@triton.jit(do_not_specialize=["step"])
def tail_cotangent_kernel(
    activation,  # (B, H / 2, W / 2, HIDDEN), output of deconv1
    weights2,  # (HIDDEN, CHANNELS, 1, 1)
    bias2,  # (CHANNELS,)
    weights3,  # (CHANNELS, CHANNELS, 5, 5)
    start,  # (CHANNELS, H, W) from start_kernel
    state,  # (B, C, H, W) by its strides
    noise,  # (B, C, H, W) contiguous, read for GIVEN
    seed,  # (1,) int64
    sample_ids,  # (B,) int64
    gradient,  # (B, C, H, W) contiguous: in, the cotangent of the new state; out, (1 - a) times it inside the bounds
    cotangent,  # (B, C, H, W) contiguous, out: cotangent of conv3 before its tanh
    patches,  # B x H / 2 x W / 4
    height,
    width,
    state_image,
    state_channel,
    state_row,
    state_column,
    step,
    step_size,
    noise_scale,
    low,
    high,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    NOISE: tl.constexpr,
    CLAMPED: tl.constexpr,
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
        image_start = image * (CHANNELS * height * width)
        place = gradient + image_start + element
        g0 = tl.load(place, mask=mask, other=0.0)
        g1 = tl.load(place + 1, mask=mask, other=0.0)
        g2 = tl.load(place + 2, mask=mask, other=0.0)
        g3 = tl.load(place + 3, mask=mask, other=0.0)
        if CLAMPED:
            v0, v1, v2, v3 = free_row(
                r0, r1, r2, r3,
                state + image * state_image + channel * state_channel + y * state_row + 4 * q * state_column,
                state_column, noise + image_start + element, element, sample_id, step, key, step_size, noise_scale,
                mask, NOISE,
            )  # fmt: skip
            g0 = _inside(g0, v0, low, high)
            g1 = _inside(g1, v1, low, high)
            g2 = _inside(g2, v2, low, high)
            g3 = _inside(g3, v3, low, high)
        tl.store(place, (1.0 - step_size) * g0, mask=mask)
        tl.store(place + 1, (1.0 - step_size) * g1, mask=mask)
        tl.store(place + 2, (1.0 - step_size) * g2, mask=mask)
        tl.store(place + 3, (1.0 - step_size) * g3, mask=mask)
        place = cotangent + image_start + element
        tl.store(place, step_size * g0 * (1.0 - r0 * r0), mask=mask)
        tl.store(place + 1, step_size * g1 * (1.0 - r1 * r1), mask=mask)
        tl.store(place + 2, step_size * g2 * (1.0 - r2 * r2), mask=mask)
        tl.store(place + 3, step_size * g3 * (1.0 - r3 * r3), mask=mask)


@triton.jit
def even_cotangent_kernel(
    cotangent,  # (B, C, H, W) contiguous, of conv3 before its tanh
    activation,  # (B, H / 2, W / 2, HIDDEN), output of deconv1
    weights2,  # (HIDDEN, CHANNELS, 1, 1)
    bias2,  # (CHANNELS,)
    weights3,  # (CHANNELS, CHANNELS, 5, 5)
    out,  # (B, H / 2, W / 2, CHANNELS): cotangent of deconv2 before its tanh at even positions
    positions,  # B x H / 2 x W / 2
    height,
    width,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = tl.program_id(1)
    mask = index < positions
    rows = height // 2
    columns = width // 2
    image = index // (rows * columns)
    i = (index // columns) % rows
    j = index % columns
    total = tl.zeros((BLOCK,), tl.float32)
    for channel in range(CHANNELS):
        plane = cotangent + (image * CHANNELS + channel) * height * width
        taps = weights3 + (channel * CHANNELS + source) * 25
        for ky in range(5):
            y = 2 * i + 2 - ky
            in_row = mask & (y >= 0) & (y < height)
            for kx in tl.static_range(5):
                x = 2 * j + 2 - kx
                g = tl.load(plane + y * width + x, mask=in_row & (x >= 0) & (x < width), other=0.0)
                total = tl.fma(g, tl.load(taps + 5 * ky + kx), total)
    images = activation + image * (rows * columns * HIDDEN)
    even = even_value(images, weights2, bias2, source, i, j, rows, columns, mask, CHANNELS, HIDDEN)
    tl.store(out + index * CHANNELS + source, total * (1.0 - even * even), mask=mask)
