// The last two layers and the Langevin step that follows them, in both forms.
//
// The 1x1 transposed convolution of stride 2 is computed on the even pixels only ([channel][H/2][W/2]); every other
// pixel of its output is the constant tanh(bias). The last convolution starts each sum from the precomputed share of
// those constants (cpu/forms.h) and adds the even pixels in the order input channel, ky, kx.
#pragma once

#include "cpu/elementary.h"
#include "cpu/forms.h"
#include "cpu/noise.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// What becomes of r(x): stored as it is, or one Langevin step.
struct Update {
    bool residual_only;  // x <- r(x)
    float step_size, noise_scale, low, high;
};

FASTMALADE_INLINE Vec updated(Vec x, Vec r, const Update& u) {
    return u.residual_only ? r : fma(broadcast(u.step_size), r - x, x);
}

// Comparisons are false for NaN, so a NaN state stays NaN.
FASTMALADE_INLINE Vec clamped(Vec v, const Update& u) {
    const Vec low = broadcast(u.low), high = broadcast(u.high);
    v = select(v < low, low, v);
    return select(v > high, high, v);
}

FASTMALADE_INLINE int border_class(int64_t position, int64_t size) {
    return (int)(position < 2 ? position : position >= size - 2 ? position - size + 6 : 2 + position % 2);
}

// in: [hidden1][H/2 * W/2][LANES], out: [C][H/2 * W/2][LANES]
FASTMALADE_INLINE void even_pixels(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                                   const float* in, float* out) {
    const int64_t positions = s.height / 2 * (s.width / 2);  // a multiple of 4
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.deconv2 + c * s.hidden1;
        const Vec bias = broadcast(packed[at.deconv2_bias + c]);
        for (int64_t n = 0; n < positions; n += 4) {
            Vec sum[4] = {bias, bias, bias, bias};
            const float* pixel = in + n * LANES;
            for (int64_t i = 0; i < s.hidden1; ++i, pixel += positions * LANES) {
                const Vec weight = broadcast(weights[i]);
                for (int p = 0; p < 4; ++p) sum[p] = fma(weight, load(pixel + p * LANES), sum[p]);
            }
            for (int p = 0; p < 4; ++p) store(out + (c * positions + n + p) * LANES, tanh(sum[p]));
        }
    }
}

// Adds the even pixels' share to the sums of four neighbouring output pixels 4k .. 4k+3 of one row.
// in: even pixel of column 2k, first in-range row, channel 0. weights: (in channel, 5, 5) of the output channel.
template <bool LEFT_BORDER, bool RIGHT_BORDER>
FASTMALADE_INLINE void add_even_pixels(Vec sum[4], const float* in, int64_t channels, int64_t channel_stride,
                                       int64_t row_stride, const float* weights, int64_t first_tap, int64_t last_tap) {
    for (int64_t i = 0; i < channels; ++i) {
        const float* row = in + i * channel_stride;
        for (int64_t ky = first_tap; ky <= last_tap; ky += 2, row += row_stride) {
            const float* w = weights + (i * 5 + ky) * 5;
            const Vec here = load(row), next = load(row + LANES);
            if (!LEFT_BORDER) sum[0] = fma(broadcast(w[0]), load(row - LANES), sum[0]);
            sum[0] = fma(broadcast(w[2]), here, sum[0]);
            sum[0] = fma(broadcast(w[4]), next, sum[0]);
            sum[1] = fma(broadcast(w[1]), here, sum[1]);
            sum[1] = fma(broadcast(w[3]), next, sum[1]);
            sum[2] = fma(broadcast(w[0]), here, sum[2]);
            sum[2] = fma(broadcast(w[2]), next, sum[2]);
            sum[3] = fma(broadcast(w[1]), next, sum[3]);
            if (!RIGHT_BORDER) {
                const Vec after = load(row + 2 * LANES);
                sum[2] = fma(broadcast(w[4]), after, sum[2]);
                sum[3] = fma(broadcast(w[3]), after, sum[3]);
            }
        }
    }
}

// Taps ky of one parity that read rows 0 .. H-1 for output row y.
struct RowTaps {
    int64_t first, last, row;  // row: the even pixels' row of the first tap
    RowTaps(int64_t y, int64_t height) {
        first = y % 2;
        while (y + first - 2 < 0) first += 2;
        last = 4 - y % 2;
        while (y + last - 2 >= height) last -= 2;
        row = (y + first - 2) / 2;
    }
};

// even: [C][H/2][W/2][LANES], state: [C][H][W][LANES], updated in place.
FASTMALADE_INLINE void finish_step(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                                   const float* even, float* state, const Update& update, const GroupNoise& noise) {
    const int64_t row_stride = s.width / 2 * LANES, channel_stride = s.height / 2 * row_stride;
    const int64_t quads = s.width / 4;
    const bool noisy = !update.residual_only && update.noise_scale != 0.0f;
    int64_t element = 0;  // a multiple of 4: rows are
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.conv3 + c * s.channels * 25;
        for (int64_t y = 0; y < s.height; ++y) {
            const RowTaps taps(y, s.height);
            const float* starts = packed + at.conv3_start + border_class(y, s.height) * 6 * s.channels + c;
            const float* in = even + taps.row * row_stride;
            for (int64_t k = 0; k < quads; ++k, element += 4, in += 2 * LANES) {
                Vec sum[4];
                for (int p = 0; p < 4; ++p) sum[p] = broadcast(starts[border_class(4 * k + p, s.width) * s.channels]);
                if (quads == 1) {
                    add_even_pixels<true, true>(sum, in, s.channels, channel_stride, row_stride, weights, taps.first, taps.last);
                } else if (k == 0) {
                    add_even_pixels<true, false>(sum, in, s.channels, channel_stride, row_stride, weights, taps.first, taps.last);
                } else if (k == quads - 1) {
                    add_even_pixels<false, true>(sum, in, s.channels, channel_stride, row_stride, weights, taps.first, taps.last);
                } else {
                    add_even_pixels<false, false>(sum, in, s.channels, channel_stride, row_stride, weights, taps.first, taps.last);
                }
                Vec v[4];
                for (int p = 0; p < 4; ++p) v[p] = updated(load(state + (element + p) * LANES), tanh(sum[p]), update);
                if (noisy) {
                    const Normals n = noise.at(element);
                    for (int p = 0; p < 4; ++p) v[p] = fma(broadcast(update.noise_scale), n.z[p], v[p]);
                }
                if (!update.residual_only) {
                    for (int p = 0; p < 4; ++p) v[p] = clamped(v[p], update);
                }
                for (int p = 0; p < 4; ++p) store(state + (element + p) * LANES, v[p]);
            }
        }
    }
}

// in: [hidden1][H/2 * W/2], out: [C][H/2 * W/2]; a vector is LANES neighbouring positions.
FASTMALADE_INLINE void even_pixels(const AutoencoderShape& s, const float* packed, const PackedLayout<Latency>& at,
                                   const float* in, float* out) {
    const int64_t positions = s.height / 2 * (s.width / 2);
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.deconv2 + c * s.hidden1;
        for (int64_t n = 0; n < positions; n += LANES) {
            const int64_t count = positions - n < LANES ? positions - n : LANES;
            Vec sum = broadcast(packed[at.deconv2_bias + c]);
            for (int64_t i = 0; i < s.hidden1; ++i) {
                sum = fma(broadcast(weights[i]), load_some(in + i * positions + n, count), sum);
            }
            store_some(out + c * positions + n, tanh(sum), count);
        }
    }
}

// Sums of the last convolution before tanh: even [C][H/2][W/2] -> sums [C][H][W]. A vector is LANES positions of equal
// column parity. Even pixels of a row are read from a copy with a margin at both ends; what the margin holds is
// computed with and then not selected.
FASTMALADE_INLINE void last_sums(const AutoencoderShape& s, const float* packed, const PackedLayout<Latency>& at,
                                 const float* even, float* sums) {
    const int64_t columns = s.width / 2, channel_stride = s.height / 2 * columns;
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.conv3 + c * s.channels * 25;
        for (int64_t y = 0; y < s.height; ++y) {
            const RowTaps taps(y, s.height);
            const float* starts = packed + at.conv3_start + border_class(y, s.height) * 6 * s.channels + c;
            for (int64_t q = 0; q < columns; q += LANES) {
                const VecInt column = lane_indices() + (int32_t)q;
                const VecInt first = column == 0, last = column == (int32_t)(columns - 1);
                const int64_t count = columns - q < LANES ? columns - q : LANES;
                Vec sum[2];
                for (int parity = 0; parity < 2; ++parity) {
                    const Vec inner = broadcast(starts[(2 + parity) * s.channels]);
                    sum[parity] = select(first, broadcast(starts[parity * s.channels]),
                                         select(last, broadcast(starts[(4 + parity) * s.channels]), inner));
                }
                for (int64_t i = 0; i < s.channels; ++i) {
                    const float* row = even + i * channel_stride + taps.row * columns + q;
                    for (int64_t ky = taps.first; ky <= taps.last; ky += 2, row += columns) {
                        const float* w = weights + (i * 5 + ky) * 5;
                        const Vec here = load(row), before = load(row - 1), next = load(row + 1);
                        sum[0] = select(first, sum[0], fma(broadcast(w[0]), before, sum[0]));
                        sum[0] = fma(broadcast(w[2]), here, sum[0]);
                        sum[0] = select(last, sum[0], fma(broadcast(w[4]), next, sum[0]));
                        sum[1] = fma(broadcast(w[1]), here, sum[1]);
                        sum[1] = select(last, sum[1], fma(broadcast(w[3]), next, sum[1]));
                    }
                }
                float lanes[2][LANES];
                store(lanes[0], sum[0]);
                store(lanes[1], sum[1]);
                float* out = sums + (c * s.height + y) * s.width + 2 * q;
                for (int64_t l = 0; l < count; ++l) {
                    out[2 * l] = lanes[0][l];
                    out[2 * l + 1] = lanes[1][l];
                }
            }
        }
    }
}

// sums, noise: [C * H * W]; state likewise, updated in place. noise is null where none is wanted.
FASTMALADE_INLINE void finish_step(const AutoencoderShape& s, const float* sums, float* state, const Update& update,
                                   const float* noise) {
    for (int64_t n = 0; n < s.pixels(); n += LANES) {
        const int64_t count = s.pixels() - n < LANES ? s.pixels() - n : LANES;
        Vec v = updated(load_some(state + n, count), tanh(load_some(sums + n, count)), update);
        if (noise) v = fma(broadcast(update.noise_scale), load_some(noise + n, count), v);
        if (!update.residual_only) v = clamped(v, update);
        store_some(state + n, v, count);
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
