// The two forms of the autoencoder's convolutions and how each packs its weights.
//
// Throughput: one image in each lane. A pixel of an activation is one vector, a weight is one broadcast float.
// Latency:    one image. A pixel is one float, a weight is one vector over LANES output channels.
// Both run the same tile code (cpu/convolution.h), so every output adds the same products in the same order whatever
// the form, the batch or the position in it: bias first, then input channel, ky, kx ascending, in-range taps only.
#pragma once

#include "common/layout.h"
#include "cpu/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

struct Throughput {
    static constexpr int pixel = LANES;  // floats of one pixel of one channel
    static constexpr int unit = 1;       // output channels of one accumulator
    static constexpr int typical_units[2] = {5, 5};
    FASTMALADE_INLINE Vec weight(const float* p) { return broadcast(*p); }
    FASTMALADE_INLINE Vec activation(const float* p) { return load(p); }
};

// Blocks of accumulators that 10 and 25 output channels fall into, by Blocks below.
constexpr int latency_units(int channels) {
    return (channels + LANES - 1) / LANES > 5 ? 4 : (channels + LANES - 1) / LANES;
}

struct Latency {
    static constexpr int pixel = 1;
    static constexpr int unit = LANES;
    static constexpr int typical_units[2] = {latency_units(10), latency_units(25)};
    FASTMALADE_INLINE Vec weight(const float* p) { return load(p); }
    FASTMALADE_INLINE Vec activation(const float* p) { return broadcast(*p); }
};

// Output channels are cut into blocks of at most MAX_UNITS accumulators, of sizes that differ by one at most.
constexpr int MAX_UNITS = 5;

template <class Form>
struct Blocks {
    int64_t units, count;
    explicit Blocks(int64_t channels)
        : units((channels + Form::unit - 1) / Form::unit), count((units + MAX_UNITS - 1) / MAX_UNITS) {}
    int64_t first(int64_t block) const { return block * (units / count) + least(block, units % count); }
    int64_t size(int64_t block) const { return first(block + 1) - first(block); }
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// Positions of one output row that share a tile: as many as the registers take beside one weight and the activations,
// and no more than four where that already gives the eight independent sums that hide an FMA's latency.
constexpr int max_positions(int units) {
    return REGISTERS == 32 ? (units == 1 ? 7 : 4) : (units <= 2 ? 4 : units == 3 ? 3 : 2);
}

// Where each array lies in the packed model, in floats. Padded channels have zero weights and biases.
template <class Form>
struct PackedLayout {
    // [block][in channel][ky][kx][units of the block][Form::unit], and the biases [units][Form::unit].
    int64_t conv1, conv1_bias, conv2, conv2_bias;
    int64_t deconv1[4];  // by output phase 2 (y mod 2) + (x mod 2): the taps of that parity alone
    int64_t deconv1_bias;
    int64_t deconv2, deconv2_bias;  // [channel][hidden1], [channel]
    int64_t conv3;                  // [out channel][in channel][5][5]
    int64_t conv3_start;            // [row class][column class][out channel], cpu/tail.h
    int64_t floats;

    explicit PackedLayout(const AutoencoderShape& s) : floats(0) {
        const int64_t width1 = Blocks<Form>(s.hidden1).units * Form::unit;
        const int64_t width2 = Blocks<Form>(s.hidden2).units * Form::unit;
        conv1 = take(s.channels * 25 * width1);
        conv1_bias = take(width1);
        conv2 = take(s.hidden1 * 25 * width2);
        conv2_bias = take(width2);
        for (int phase = 0; phase < 4; ++phase) {
            deconv1[phase] = take(s.hidden2 * (5 - phase / 2) * (5 - phase % 2) * width1);
        }
        deconv1_bias = take(width1);
        deconv2 = take(s.channels * s.hidden1);
        deconv2_bias = take(s.channels);
        conv3 = take(s.channels * s.channels * 25);
        conv3_start = take(36 * s.channels);
    }

private:
    int64_t take(int64_t n) {
        const int64_t at = floats;
        floats += (n + 15) / 16 * 16;  // every array starts on a cache line
        return at;
    }
};

// Weights of one convolution, read through `at(out, in, ky, kx)`.
template <class Form, class At>
void pack_taps(int64_t out_channels, int64_t in_channels, int64_t rows, int64_t columns, At at, float* packed) {
    const Blocks<Form> blocks(out_channels);
    for (int64_t block = 0; block < blocks.count; ++block) {
        const int64_t first = blocks.first(block) * Form::unit, width = blocks.size(block) * Form::unit;
        for (int64_t in = 0; in < in_channels; ++in) {
            for (int64_t ky = 0; ky < rows; ++ky) {
                for (int64_t kx = 0; kx < columns; ++kx) {
                    for (int64_t o = 0; o < width; ++o) {
                        *packed++ = first + o < out_channels ? at(first + o, in, ky, kx) : 0.0f;
                    }
                }
            }
        }
    }
}

template <class Form>
void pack_bias(int64_t channels, const float* bias, float* packed) {
    const int64_t width = Blocks<Form>(channels).units * Form::unit;
    for (int64_t o = 0; o < width; ++o) packed[o] = o < channels ? bias[o] : 0.0f;
}

// The last convolution reads an image whose pixels off the even rows and columns hold the constant tanh(bias) of the
// transposed convolution before it. Those taps, and the bias, are one number per output channel and border case: the
// start of the sum over the even pixels. Cases along one axis: first, second, inner even, inner odd, last but one, last.
template <class Form>
void pack_conv3_start(const AutoencoderShape& s, const AutoencoderWeights& w, float* packed) {
    const int64_t lowest_tap[6] = {2, 1, 0, 0, 0, 0}, highest_tap[6] = {4, 4, 4, 4, 3, 2};
    for (int row_class = 0; row_class < 6; ++row_class) {
        for (int column_class = 0; column_class < 6; ++column_class) {
            for (int64_t out = 0; out < s.channels; ++out) {
                double sum = w.conv3_bias[out];
                for (int64_t in = 0; in < s.channels; ++in) {
                    const double constant = __builtin_tanh((double)w.deconv2_bias[in]);
                    for (int64_t ky = lowest_tap[row_class]; ky <= highest_tap[row_class]; ++ky) {
                        for (int64_t kx = lowest_tap[column_class]; kx <= highest_tap[column_class]; ++kx) {
                            // Cases alternate even, odd: a tap of the same parity as its output reads an even pixel.
                            const bool even_pixel = (row_class + ky) % 2 == 0 && (column_class + kx) % 2 == 0;
                            if (!even_pixel) sum += w.conv3_weight[((out * s.channels + in) * 5 + ky) * 5 + kx] * constant;
                        }
                    }
                }
                packed[(row_class * 6 + column_class) * s.channels + out] = (float)sum;
            }
        }
    }
}

template <class Form>
void pack_model(const AutoencoderShape& s, const AutoencoderWeights& w, float* packed) {
    const PackedLayout<Form> at(s);
    pack_taps<Form>(s.hidden1, s.channels, 5, 5, [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
        return w.conv1_weight[((o * s.channels + i) * 5 + ky) * 5 + kx]; }, packed + at.conv1);
    pack_taps<Form>(s.hidden2, s.hidden1, 5, 5, [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
        return w.conv2_weight[((o * s.hidden1 + i) * 5 + ky) * 5 + kx]; }, packed + at.conv2);
    for (int64_t phase = 0; phase < 4; ++phase) {
        const int64_t odd_row = phase / 2, odd_column = phase % 2;
        pack_taps<Form>(s.hidden1, s.hidden2, 5 - odd_row, 5 - odd_column,
                        [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
            return w.deconv1_weight[((i * s.hidden1 + o) * 9 + 2 * ky + odd_row) * 9 + 2 * kx + odd_column]; },
            packed + at.deconv1[phase]);
    }
    pack_bias<Form>(s.hidden1, w.conv1_bias, packed + at.conv1_bias);
    pack_bias<Form>(s.hidden2, w.conv2_bias, packed + at.conv2_bias);
    pack_bias<Form>(s.hidden1, w.deconv1_bias, packed + at.deconv1_bias);
    for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t i = 0; i < s.hidden1; ++i) packed[at.deconv2 + c * s.hidden1 + i] = w.deconv2_weight[i * s.channels + c];
        packed[at.deconv2_bias + c] = w.deconv2_bias[c];
    }
    for (int64_t n = 0; n < s.channels * s.channels * 25; ++n) packed[at.conv3 + n] = w.conv3_weight[n];
    pack_conv3_start<Form>(s, w, packed + at.conv3_start);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
