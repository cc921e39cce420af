// The last two layers and the Langevin step that follows them: in the throughput form, and for one image of a planar
// form.
//
// The 1x1 transposed convolution of stride 2 is computed on the even pixels only ([channel][H/2][W/2]); every other
// pixel of its output is the constant tanh(bias). The last convolution starts each sum from the precomputed share of
// those constants (cpu/isa/packing.h) and adds the even pixels in the order input channel, ky, kx.
#pragma once

#include "cpu/isa/elementary.h"
#include "cpu/isa/noise.h"
#include "cpu/isa/packing.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// What becomes of r(x): stored as it is, or one Langevin step.
struct Update {
    bool reconstruct_only = false;  // x <- r(x), and the numbers are not read
    float step_size = 0.0f, noise_scale = 0.0f, low = 0.0f, high = 0.0f;
};

FASTMALADE_INLINE Vec updated(Vec x, Vec r, const Update& u) {
    return u.reconstruct_only ? r : fma(broadcast(u.step_size), r - x, x);
}

// What the gradient of a step needs from the step's end, laid out as the state; null where nothing is kept.
struct KeptEnd {
    float* reconstruction;  // r(x)
    float* within_bounds;   // all bits of an element set where the clamp let it through, none where it did not
};

// A value on a bound is within, NaN is not: torch.clamp's rule.
FASTMALADE_INLINE Vec within_bounds(Vec v, const Update& u) {
    return from_bits((v >= broadcast(u.low)) & (v <= broadcast(u.high)));
}

FASTMALADE_INLINE int border_class(int64_t position, int64_t size) {
    return (int)(position < 2 ? position : position >= size - 2 ? position - size + 6 : 2 + position % 2);
}

// in: [hidden1][H/2 * W/2][kLanes], out: [C][H/2 * W/2][kLanes]
FASTMALADE_INLINE void even_pixels(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                                   const float* in, float* out) {
    const int64_t positions = s.height / 2 * (s.width / 2);  // a multiple of 4
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.deconv2 + c * s.hidden1;
        const Vec bias = broadcast(packed[at.deconv2_bias + c]);
        for (int64_t n = 0; n < positions; n += 4) {
            Vec sum[4] = {bias, bias, bias, bias};
            const float* pixel = in + n * kLanes;
            for (int64_t i = 0; i < s.hidden1; ++i, pixel += positions * kLanes) {
                const Vec weight = broadcast(weights[i]);
                for (int p = 0; p < 4; ++p) sum[p] = fma(weight, load(pixel + p * kLanes), sum[p]);
            }
            for (int p = 0; p < 4; ++p) store(out + (c * positions + n + p) * kLanes, tanh(sum[p]));
        }
    }
}

// Adds the even pixels' share to the sums of four neighbouring output pixels 4k .. 4k+3 of one row, in OUT channels.
// in: even pixel of column 2k, first in-range row, channel 0. weights: (out channel, in channel, 5, 5) from the first
// of the OUT channels on.
template <int OUT, bool LEFT_BORDER, bool RIGHT_BORDER>
FASTMALADE_INLINE void add_even_pixels(Vec sum[OUT][4], const float* in, int64_t channels, int64_t channel_stride,
                                       int64_t row_stride, const float* weights, int64_t first_tap, int64_t last_tap) {
    for (int64_t i = 0; i < channels; ++i) {
        const float* row = in + i * channel_stride;
        for (int64_t ky = first_tap; ky <= last_tap; ky += 2, row += row_stride) {
            const Vec before = LEFT_BORDER ? Vec{} : load(row - kLanes), here = load(row), next = load(row + kLanes);
            const Vec after = RIGHT_BORDER ? Vec{} : load(row + 2 * kLanes);
#pragma GCC unroll 3
            for (int o = 0; o < OUT; ++o) {
                const float* w = weights + ((o * channels + i) * 5 + ky) * 5;
                Vec* s = sum[o];
                if (!LEFT_BORDER) s[0] = fma(broadcast(w[0]), before, s[0]);
                s[0] = fma(broadcast(w[2]), here, s[0]);
                s[0] = fma(broadcast(w[4]), next, s[0]);
                s[1] = fma(broadcast(w[1]), here, s[1]);
                s[1] = fma(broadcast(w[3]), next, s[1]);
                s[2] = fma(broadcast(w[0]), here, s[2]);
                s[2] = fma(broadcast(w[2]), next, s[2]);
                s[3] = fma(broadcast(w[1]), next, s[3]);
                if (!RIGHT_BORDER) {
                    s[2] = fma(broadcast(w[4]), after, s[2]);
                    s[3] = fma(broadcast(w[3]), after, s[3]);
                }
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

// r(x) of one row, OUT channels from `first` on. out: [OUT][W][kLanes]
template <int OUT>
FASTMALADE_INLINE void last_row(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                                const float* even, int64_t first, int64_t y, float* out) {
    const int64_t row_stride = s.width / 2 * kLanes, channel_stride = s.height / 2 * row_stride;
    const int64_t tiles = s.width / 4;
    const RowTaps taps(y, s.height);
    const float* weights = packed + at.conv3 + first * s.channels * 25;
    const float* starts = packed + at.conv3_start + border_class(y, s.height) * 6 * s.channels + first;
    const float* in = even + taps.row * row_stride;
    for (int64_t k = 0; k < tiles; ++k, in += 2 * kLanes) {
        Vec sum[OUT][4];
#pragma GCC unroll 3
        for (int o = 0; o < OUT; ++o) {
            for (int p = 0; p < 4; ++p) {
                sum[o][p] = broadcast(starts[border_class(4 * k + p, s.width) * s.channels + o]);
            }
        }
        const int64_t c = s.channels, tap = taps.first, last = taps.last;
        if (tiles == 1) {
            add_even_pixels<OUT, true, true>(sum, in, c, channel_stride, row_stride, weights, tap, last);
        } else if (k == 0) {
            add_even_pixels<OUT, true, false>(sum, in, c, channel_stride, row_stride, weights, tap, last);
        } else if (k == tiles - 1) {
            add_even_pixels<OUT, false, true>(sum, in, c, channel_stride, row_stride, weights, tap, last);
        } else {
            add_even_pixels<OUT, false, false>(sum, in, c, channel_stride, row_stride, weights, tap, last);
        }
#pragma GCC unroll 3
        for (int o = 0; o < OUT; ++o) {
            for (int p = 0; p < 4; ++p) store(out + (o * s.width + 4 * k + p) * kLanes, tanh(sum[o][p]));
        }
    }
}

// even: [C][H/2][W/2][kLanes]; state: [C][H][W][kLanes], updated in place; rows: [4][W][kLanes] of working memory.
// Three passes over a row instead of one: the noise alone is a longer chain of operations than a processor looks ahead.
template <bool KEEP>
void finish_step(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at, const float* even,
                 float* state, const Update& given, const GroupNoise& noise, float* rows, const KeptEnd& kept) {
    const Update update = given;  // a copy, kept in registers: as far as the compiler knows, the stores change `given`
    const bool noisy = !update.reconstruct_only && update.noise_scale != 0.0f;
    float* noise_row = rows + 3 * s.width * kLanes;
    for (int64_t y = 0; y < s.height; ++y) {
        for (int64_t first = 0; first < s.channels; first += 3) {
            const int64_t left = s.channels - first, count = left < 3 ? left : 3;
            switch (count) {
                case 1: last_row<1>(s, packed, at, even, first, y, rows); break;
                case 2: last_row<2>(s, packed, at, even, first, y, rows); break;
                default: last_row<3>(s, packed, at, even, first, y, rows); break;
            }
            for (int64_t c = 0; c < count; ++c) {
                const int64_t element = ((first + c) * s.height + y) * s.width;
                const float* r = rows + c * s.width * kLanes;
                float* x = state + element * kLanes;
                if (KEEP) {
                    float* to = kept.reconstruction + element * kLanes;
                    for (int64_t n = 0; n < s.width; ++n) store(to + n * kLanes, load(r + n * kLanes));
                }
                if (update.reconstruct_only) {
                    for (int64_t n = 0; n < s.width; ++n) store(x + n * kLanes, load(r + n * kLanes));
                    continue;
                }
                if (noisy) noise.draw(element, s.width, noise_row);
                for (int64_t n = 0; n < s.width; ++n) {
                    Vec v = updated(load(x + n * kLanes), load(r + n * kLanes), update);
                    if (noisy) v = fma(broadcast(update.noise_scale), load(noise_row + n * kLanes), v);
                    if (KEEP) store(kept.within_bounds + (element + n) * kLanes, within_bounds(v, update));
                    store(x + n * kLanes, clamped(v, update.low, update.high));
                }
            }
        }
    }
}

// in: [images] PhasePlanes, out: [images][C][H/2][W/2]; a vector is kLanes neighbouring positions of one phase.
template <int IMAGES>
void even_pixels(const AutoencoderShape& s, const float* packed, const PackedLayout<Group<IMAGES>>& at, const float* in,
                 float* out) {
    const int64_t height = s.height / 4, width = s.width / 4;
    const PhasePlanes planes(height, width);
    for (int64_t n = 0; n < IMAGES * s.channels; ++n) {
        const int64_t c = n % s.channels;
        const float* image = in + n / s.channels * planes.image(s.hidden1);
        const float* weights = packed + at.deconv2 + c * s.hidden1;
        const Vec bias = broadcast(packed[at.deconv2_bias + c]);
        // A vector that reaches beyond its row spoils the next one, which is stored after it, or lies in a margin: so
        // upper rows are stored first, and columns are done from right to left.
        float* rows = out + n * height * 4 * width;
        for (int64_t column = (width - 1) / kLanes * kLanes; column >= 0; column -= kLanes) {
            for (int64_t row = 0; row < height; ++row) {
                const float* from = image + row * planes.row + column;
                Vec sum[4] = {bias, bias, bias, bias};  // by phase
                for (int64_t i = 0; i < s.hidden1; ++i, from += planes.plane) {
                    const Vec weight = broadcast(weights[i]);
#pragma GCC unroll 4
                    for (int phase = 0; phase < 4; ++phase) {
                        sum[phase] = fma(weight, load(from + phase * s.hidden1 * planes.plane), sum[phase]);
                    }
                }
                float* to = rows + 4 * row * width + 2 * column;
#pragma GCC unroll 2
                for (int odd = 0; odd < 2; ++odd, to += 2 * width) {
                    Vec run[2];
                    interleave(tanh(sum[2 * odd]), tanh(sum[2 * odd + 1]), run);
                    store_run(to, run, 2, 2 * (width - column));
                }
            }
        }
    }
}

// Sums of the last convolution before tanh: even [C][H/2][W/2] -> sums [C][H][W]. A vector is kLanes positions of equal
// column parity. Two output rows are done together, since both read the rows of even pixels around them. Values read
// from beside a row, or from a margin, are computed with and then not selected.
template <int IMAGES>
void last_sums(const AutoencoderShape& s, const float* packed, const PackedLayout<Group<IMAGES>>& at, const float* even,
               float* sums) {
    const int64_t pairs = s.height / 2, columns = s.width / 2;
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* weights = packed + at.conv3 + c * s.channels * 25;
        const float* starts = packed + at.conv3_start + c;
        // From right to left, as in even_pixels.
        for (int64_t q = (columns - 1) / kLanes * kLanes; q >= 0; q -= kLanes) {
            const VecInt column = lane_indices() + (int32_t)q;
            const VecInt first = column == 0, last = column == (int32_t)(columns - 1);
            Vec start[6][2];  // [border_class of the row][parity of the column]
            for (int row = 0; row < 6; ++row) {
                for (int parity = 0; parity < 2; ++parity) {
                    const float* of_class = starts + (row * 6 + parity) * s.channels;
                    start[row][parity] =
                        select(first, broadcast(of_class[0]),
                               select(last, broadcast(of_class[4 * s.channels]), broadcast(of_class[2 * s.channels])));
                }
            }
            for (int64_t pair = 0; pair < pairs; ++pair) {
                const int64_t row_class = border_class(2 * pair, s.height);
                Vec sum[2][2];  // [parity of the row][parity of the column]
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) sum[n / 2][n % 2] = start[row_class + n / 2][n % 2];
                // Tap ky = 2 k - parity of the pair's row of that parity reads the even pixels k - 1 rows further down.
                const auto add_row = [&](const float* row, const float* taps, int k) __attribute__((always_inline)) {
                    const Vec before = load(row - 1), here = load(row), next = load(row + 1);
#pragma GCC unroll 2
                    for (int parity = 0; parity < 2; ++parity) {
                        const int ky = 2 * k - parity;
                        if (ky < 0) continue;
                        const float* w = taps + ky * 5;
                        Vec* to = sum[parity];
                        to[0] = select(first, to[0], fma(broadcast(w[0]), before, to[0]));
                        to[0] = fma(broadcast(w[2]), here, to[0]);
                        to[0] = select(last, to[0], fma(broadcast(w[4]), next, to[0]));
                        to[1] = fma(broadcast(w[1]), here, to[1]);
                        to[1] = select(last, to[1], fma(broadcast(w[3]), next, to[1]));
                    }
                };
                const float* row = even + pair * columns + q;
                const float* taps = weights;
                for (int64_t i = 0; i < s.channels; ++i, row += pairs * columns, taps += 25) {
                    if (pair > 0) add_row(row - columns, taps, 0);
                    add_row(row, taps, 1);
                    if (pair < pairs - 1) add_row(row + columns, taps, 2);
                }
                float* to = sums + (c * s.height + 2 * pair) * s.width + 2 * q;
#pragma GCC unroll 2
                for (int parity = 0; parity < 2; ++parity, to += s.width) {
                    Vec run[2];
                    interleave(sum[parity][0], sum[parity][1], run);
                    store_run(to, run, 2, 2 * (columns - q));
                }
            }
        }
    }
}

// sums, noise: [C * H * W], whole vectors of them; state likewise, updated in place. noise is null where none is
// wanted.
template <bool KEEP>
void finish_step(const AutoencoderShape& s, const float* sums, float* state, const Update& given, const float* noise,
                 const KeptEnd& kept) {
    const Update update = given;
    const int64_t pixels = s.pixels();
    for (int64_t n = 0; n < pixels; n += kLanes) {
        const Vec r = tanh(load(sums + n));
        Vec v = updated(load(state + n), r, update);
        if (noise) v = fma(broadcast(update.noise_scale), load(noise + n), v);
        if (KEEP) {
            store(kept.reconstruction + n, r);
            if (!update.reconstruct_only) store(kept.within_bounds + n, within_bounds(v, update));
        }
        if (!update.reconstruct_only) v = clamped(v, update.low, update.high);
        store(state + n, v);
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
