// Conv1 of one image with neighbouring output columns in the lanes of a vector, for the latency form.
//
// Ten output channels leave six of sixteen lanes empty where channels lie in the lanes (cpu/isa/convolution.h);
// fourteen columns leave two. The sums add the same products in the same order, so the bits are the same: which way is
// taken depends on the shape alone, and only for its speed. Results are transposed in registers into the channel
// vectors that conv2 reads.
#pragma once

#include "cpu/isa/elementary.h"
#include "cpu/isa/forms.h"
#include "common/layout.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Vectors of sums, with columns or with channels in the lanes: each costs its multiply-adds and a tanh.
inline bool conv1_by_pixels(const AutoencoderShape& s) {
    const int64_t columns = s.width / 2;
    const int64_t by_pixels = (columns + kLanes - 1) / kLanes * s.hidden1;
    const int64_t by_channels = columns * ((s.hidden1 + kLanes - 1) / kLanes);
    return by_pixels < by_channels;
}

// Floats of an image's even columns, and where its odd ones start: vectors may be stored beyond the end of either.
inline int64_t odd_columns(const AutoencoderShape& s) { return s.pixels() / 2 + 16; }

// Tap kx of output column p reads column 2p - 2 + kx: of the even ones p - 1, p, p + 1 and of the odd ones p - 1, p.
// image: [C][H][W]; columns: [C][H][W/2] even ones, the odd ones from odd_columns on
inline void separate_columns(const AutoencoderShape& s, const float* image, float* columns) {
    float* odds = columns + odd_columns(s);
    for (int64_t n = 0; n < s.pixels(); n += 2 * kLanes) {
        Vec even, odd;
        separate(load(image + n), load(image + n + kLanes), &even, &odd);
        store(columns + n / 2, even);
        store(odds + n / 2, odd);
    }
}

// A few output channels at up to two vectors of neighbouring columns of one output row.
struct PixelTile {
    const float *even, *odd;  // row of the first in-range tap in channel 0, first column of the tile
    int64_t in_channels, channel_stride, row_stride, rows;
    const float* weights;                  // first of the output channels, first in-range tap of input channel 0
    int64_t channel_weights, tap_weights;  // floats from one input channel, and from one tap, to the next
    const float* bias;
    VecInt first;  // the lane of the tile's first vector that holds column 0
    VecInt last;   // the lane of its last vector that holds the row's last column
};

// Sums before tanh. Not inlined, or the loops around it push sums out of registers. Taps that fall outside the row are
// computed from whatever lies there and then not selected. out: [CHANNELS][2 * kLanes]
template <int CHANNELS, int VECTORS>
FASTMALADE_NOINLINE void pixel_sums(const PixelTile& t, float* out) {
    Vec sum[CHANNELS][VECTORS];
#pragma GCC unroll 10
    for (int o = 0; o < CHANNELS; ++o) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sum[o][v] = broadcast(t.bias[o]);
    }
    for (int64_t c = 0; c < t.in_channels; ++c) {
        const float *even = t.even + c * t.channel_stride, *odd = t.odd + c * t.channel_stride;
        const float* w = t.weights + c * t.channel_weights;
        for (int64_t row = 0; row < t.rows; ++row, even += t.row_stride, odd += t.row_stride) {
#pragma GCC unroll 5
            for (int kx = 0; kx < 5; ++kx, w += t.tap_weights) {
                const float* in = (kx % 2 ? odd : even) + kx / 2 - 1;
                // Read where it is needed: kept in a register it would push a sum out.
                const VecInt outside = *(const volatile VecInt*)(kx < 2 ? &t.first : &t.last);
                Vec a[VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) a[v] = load(in + v * kLanes);
#pragma GCC unroll 10
                for (int o = 0; o < CHANNELS; ++o) {
                    const Vec weight = broadcast(w[o]);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) {
                        const Vec more = fma(weight, a[v], sum[o][v]);
                        const bool beside = (kx < 2 && v == 0) || (kx == 4 && v == VECTORS - 1);
                        sum[o][v] = beside ? select(outside, sum[o][v], more) : more;
                    }
                }
            }
        }
    }
#pragma GCC unroll 10
    for (int o = 0; o < CHANNELS; ++o) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(out + (2 * o + v) * kLanes, sum[o][v]);
    }
}

// As many output channels as give ten sums, which hide the latency of a multiply-add.
constexpr int most_channels(int vectors) { return vectors == 1 ? 10 : 5; }

template <int VECTORS, int CHANNELS = most_channels(VECTORS)>
void pixel_sums_of(const PixelTile& t, int64_t channels, float* out) {
    if (channels == CHANNELS) return pixel_sums<CHANNELS, VECTORS>(t, out);
    if constexpr (CHANNELS > 1) pixel_sums_of<VECTORS, CHANNELS - 1>(t, channels, out);
}

// rows: [hidden1, rounded up to kLanes][2 * kLanes], zero from hidden1 on; out: first of the tile's columns in unit 0,
// units `unit_stride` apart
FASTMALADE_NOINLINE inline void store_pixels(const AutoencoderShape& s, float* rows, int64_t count, float* out,
                                             int64_t unit_stride) {
    const int64_t vectors = count > kLanes ? 2 : 1;
    for (int64_t o = 0; o < s.hidden1; ++o) {
        float* row = rows + 2 * o * kLanes;
        for (int64_t v = 0; v < vectors; ++v) store(row + v * kLanes, tanh(load(row + v * kLanes)));
    }
    for (int64_t unit = 0; unit * kLanes < s.hidden1; ++unit) {
        for (int64_t v = 0; v < vectors; ++v) {
            Vec square[kLanes];
            for (int o = 0; o < kLanes; ++o) square[o] = load(rows + (2 * (unit * kLanes + o) + v) * kLanes);
            transpose(square);
            const int64_t left = count - v * kLanes;
            float* to = out + unit * unit_stride + v * kLanes * kLanes;
            for (int l = 0; l < kLanes; ++l) {
                if (l < left) store(to + l * kLanes, square[l]);
            }
        }
    }
}

// weights, bias: packed for the latency form; columns: of separate_columns; rows: working memory of store_pixels;
// out: [unit of hidden1][H/2][W/2][kLanes]
inline void conv1_pixels(const AutoencoderShape& s, const float* weights, const float* bias, const float* columns,
                         float* rows, float* out) {
    const int64_t height = s.height / 2, width = s.width / 2;
    const Blocks<Latency> blocks(s.hidden1);
    PixelTile t;
    t.in_channels = s.channels;
    t.channel_stride = s.height * width;
    t.row_stride = width;
    for (int64_t q = 0; q < height; ++q) {
        const int64_t first_row = 2 * q - 2, first_tap = first_row < 0 ? -first_row : 0;
        const int64_t within = s.height - first_row, end_tap = within < 5 ? within : 5;
        t.rows = end_tap - first_tap;
        for (int64_t column = 0; column < width; column += 2 * kLanes) {
            const int64_t left = width - column, vectors = left > kLanes ? 2 : 1;
            const int64_t count = left < vectors * kLanes ? left : vectors * kLanes, most = most_channels((int)vectors);
            t.first = lane_indices() + (int32_t)column == 0;
            t.last = lane_indices() + (int32_t)(column + (vectors - 1) * kLanes) == (int32_t)(width - 1);
            t.even = columns + (first_row + first_tap) * width + column;
            t.odd = t.even + odd_columns(s);
            for (int64_t block = 0; block < blocks.count; ++block) {
                const int64_t begin = blocks.first(block) * kLanes, floats = blocks.size(block) * kLanes;
                const int64_t channels = s.hidden1 - begin < floats ? s.hidden1 - begin : floats;
                const int64_t groups = (channels + most - 1) / most;
                t.tap_weights = floats;
                t.channel_weights = 25 * floats;
                int64_t channel = 0;
                for (int64_t group = 0; group < groups; ++group) {
                    const int64_t size = channels / groups + (group < channels % groups);
                    t.weights = weights + begin * s.channels * 25 + first_tap * 5 * floats + channel;
                    t.bias = bias + begin + channel;
                    float* sums = rows + 2 * (begin + channel) * kLanes;
                    if (vectors == 2) {
                        pixel_sums_of<2>(t, size, sums);
                    } else {
                        pixel_sums_of<1>(t, size, sums);
                    }
                    channel += size;
                }
            }
            store_pixels(s, rows, count, out + (q * width + column) * kLanes, height * width * kLanes);
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
