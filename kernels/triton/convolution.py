"""The convolutions and their vector-Jacobian products, all by one kernel: an implicit matrix product.

Row m of the left matrix is the window that output position m reads, column n of the right one the weights of output
channel n, and k counts taps and input channels in ascending order (tap row, tap column, channel). A window's row is one
contiguous run of memory (layouts: __init__.py), so k needs one division and no masks but that of the last block.

A transposed convolution of stride 2, and the product of a strided one, is four convolutions of stride 1, one for each
parity (py, px) of the output position; they differ in their numbers of taps, TAPS - py and TAPS - px, and lie on one
axis of the grid.

What bounds it, predicted for Table 8 at 1x28x28 and not yet measured on a GPU: deconv1 is 70% of the arithmetic, and
its ten output channels lie on tiles of 16, so that 1.6 times the necessary multiply-adds are issued. In float32
("ieee") Triton computes a product by multiply-adds on register tiles whose operands come from shared memory. A tile of
2x4 results per thread reads six words for eight multiply-adds. Shared memory takes one instruction per clock and
multiprocessor, multiply-adds four, so the reads are the bound; larger tiles would lower it, but they spill.

Bits: in "ieee" every output is one chain of fused multiply-adds over k in ascending order, whatever the tile, so
neither the batch nor the position in it nor a tuned tile size can change a bit. On tensor cores ("tf32", "tf32x3") the
order within BLOCK_K is the hardware's; BLOCK_K is therefore never tuned.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import tanh

TANH = tl.constexpr(0)  # tanh(sum + bias)
TANH_DERIVATIVE = tl.constexpr(1)  # sum (1 - other^2), other the tanh output at that place
SUM = tl.constexpr(2)  # sum + other


@triton.jit
def convolution_kernel(
    source,  # (B, rows, columns, C_IN) contiguous, with its frame of zeros
    weights,  # (phases, K_PADDED, N_PADDED) from pack_kernel
    bias,  # (C_OUT,), read for TANH
    other,  # (B, C_OUT, outputs) by its strides, read for TANH_DERIVATIVE and SUM
    out,  # (B, C_OUT, outputs) by its strides
    positions,  # B x grid_rows x grid_columns
    grid_rows,  # output positions of one phase in a column of an image
    grid_columns,  # and in a row
    source_image,
    source_row,
    other_image,
    other_channel,
    other_row,
    other_column,
    out_image,
    out_channel,
    out_row,
    out_column,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,  # of the window over the source
    PHASES: tl.constexpr,  # per side: 1, or 2 where the output is twice as wide as the grid
    EPILOGUE: tl.constexpr,
    K_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    phase = tl.program_id(1)
    py = phase // PHASES
    px = phase % PHASES
    run = (TAPS - px) * C_IN
    depth = (TAPS - py) * run

    position = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_position = position < positions
    column = position % grid_columns
    row = (position // grid_columns) % grid_rows
    image = position // (grid_columns * grid_rows)
    window = source + image * source_image + (row * STRIDE + py) * source_row + (column * STRIDE + px) * C_IN

    channel = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    offset = tl.arange(0, BLOCK_K)
    taps = weights + phase * (K_PADDED * N_PADDED) + offset[:, None] * N_PADDED + channel[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + offset
        tap_row = k // run
        address = window[:, None] + (tap_row * source_row + (k - tap_row * run))[None, :]
        # Past the end of the window the weights are zeros, but the memory there may hold an infinity.
        values = tl.load(address, mask=is_position[:, None] & (k < depth)[None, :], other=0.0)
        total = tl.dot(values, tl.load(taps), total, input_precision=PRECISION)
        taps += BLOCK_K * N_PADDED

    y = row * PHASES + py
    x = column * PHASES + px
    is_output = is_position[:, None] & (channel < C_OUT)[None, :]
    if EPILOGUE == TANH:
        total = tanh(total + tl.load(bias + channel, mask=channel < C_OUT, other=0.0)[None, :])
    else:
        place = other + image * other_image + y * other_row + x * other_column
        term = tl.load(place[:, None] + (channel * other_channel)[None, :], mask=is_output, other=0.0)
        total = total * (1.0 - term * term) if EPILOGUE == TANH_DERIVATIVE else total + term
    place = out + image * out_image + y * out_row + x * out_column
    tl.store(place[:, None] + (channel * out_channel)[None, :], total, mask=is_output)


@triton.jit
def pack_kernel(
    source,  # weights of a layer in torch's layout, KERNEL x KERNEL taps in the last two dimensions
    out,  # (phases, K_PADDED, N_PADDED)
    n_stride,  # of the channel that the product gives
    c_stride,  # of the channel that it sums over
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    KERNEL: tl.constexpr,
    TAPS: tl.constexpr,
    PHASES: tl.constexpr,
    K_PADDED: tl.constexpr,
    N_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weights in the order of the products, zeros where a block reaches beyond the window or the channels.

    It runs at every call: a copy kept between calls would have to be compared with the weights on the host.
    """
    phase = tl.program_id(1)
    py = phase // PHASES
    px = phase % PHASES
    run = (TAPS - px) * C_IN
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = index % N_PADDED
    k = index // N_PADDED
    ty = k // run
    tx = (k - ty * run) // C_IN
    c = k % C_IN
    if PHASES == 1:
        ky = ty
        kx = tx
    else:
        # Output 2i + py of a transposed convolution reads position i + ty - (TAPS // 2) + py through this tap.
        ky = KERNEL - 1 - 2 * ty - py
        kx = KERNEL - 1 - 2 * tx - px
    is_weight = (index < K_PADDED * N_PADDED) & (ty < TAPS - py) & (n < C_OUT)
    value = tl.load(source + n * n_stride + c * c_stride + ky * KERNEL + kx, mask=is_weight, other=0.0)
    tl.store(out + phase * (K_PADDED * N_PADDED) + index, value, mask=index < K_PADDED * N_PADDED)
