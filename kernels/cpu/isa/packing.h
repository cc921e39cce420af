// The weights as the kernels read them: every convolution in the order of its loops, transforms and constants
// precomputed.
#pragma once

#include "common/layout.h"
#include "cpu/isa/forms.h"
#include "cpu/isa/spectral_layout.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Where each array lies in the packed model, in floats. Padded channels have zero weights and biases.
template <class Form>
struct PackedLayout {
    // [block][in channel][ky][kx][units of the block][Form::unit], and the biases [units][Form::unit].
    int64_t conv1, conv1_bias, conv2, conv2_bias;
    int conv2_size, deconv1_size;  // of the transforms, or 0: direct sums (cpu/isa/spectral_layout.h)
    int64_t conv2_spectrum, deconv1_spectrum;
    int64_t deconv1[4];             // by output phase 2 (y mod 2) + (x mod 2): the taps of that parity alone
    int64_t deconv1_bias;           // with a transform once per phase
    int64_t deconv2, deconv2_bias;  // [channel][hidden1], [channel]
    int64_t conv3;                  // [out channel][in channel][5][5]
    int64_t conv3_start;            // [row class][column class][out channel], cpu/isa/tail.h
    int64_t floats;

    explicit PackedLayout(const AutoencoderShape& s) : floats(0) {
        const int64_t width1 = Blocks<Form>(s.hidden1).units * Form::unit;
        const int64_t width2 = Blocks<Form>(s.hidden2).units * Form::unit;
        conv1 = take(s.channels * 25 * width1);
        conv1_bias = take(width1);
        conv2_size = conv2_transform(s).size;
        conv2_spectrum = take(spectral_floats<Form>(conv2_transform(s)));
        conv2 = take(conv2_size ? 0 : s.hidden1 * 25 * width2);
        conv2_bias = take(width2);
        deconv1_size = deconv1_transform(s).size;
        deconv1_spectrum = take(spectral_floats<Form>(deconv1_transform(s)));
        for (int phase = 0; phase < 4; ++phase) {
            deconv1[phase] = take(deconv1_size ? 0 : s.hidden2 * (5 - phase / 2) * (5 - phase % 2) * width1);
        }
        deconv1_bias = take(deconv1_size ? Blocks<Form>(4 * s.hidden1).units * Form::unit : width1);
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

// The biases `copies` times, then zeros to the end of the last vector.
template <class Form>
void pack_bias(int64_t channels, int64_t copies, const float* bias, float* packed) {
    const int64_t width = Blocks<Form>(copies * channels).units * Form::unit;
    for (int64_t o = 0; o < width; ++o) packed[o] = o < copies * channels ? bias[o % channels] : 0.0f;
}

// The last convolution reads an image whose pixels off the even rows and columns hold the constant tanh(bias) of the
// transposed convolution before it. Those taps, and the bias, are one number per output channel and border case: the
// start of the sum over the even pixels. Cases along one axis: first, second, inner even, inner odd, last but one,
// last.
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
                            if (!even_pixel)
                                sum += w.conv3_weight[((out * s.channels + in) * 5 + ky) * 5 + kx] * constant;
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
    pack_taps<Form>(
        s.hidden1, s.channels, 5, 5,
        [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
            return w.conv1_weight[((o * s.channels + i) * 5 + ky) * 5 + kx];
        },
        packed + at.conv1);
    pack_spectrum<Form>(
        conv2_transform(s), [&](int64_t i, int64_t o, Taps taps) { conv2_taps(s, w.conv2_weight, i, o, taps); },
        packed + at.conv2_spectrum);
    if (at.conv2_size == 0) {
        pack_taps<Form>(
            s.hidden2, s.hidden1, 5, 5,
            [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
                return w.conv2_weight[((o * s.hidden1 + i) * 5 + ky) * 5 + kx];
            },
            packed + at.conv2);
    }
    pack_spectrum<Form>(
        deconv1_transform(s), [&](int64_t i, int64_t o, Taps taps) { deconv1_taps(s, w.deconv1_weight, i, o, taps); },
        packed + at.deconv1_spectrum);
    for (int64_t phase = 0; phase < 4 && at.deconv1_size == 0; ++phase) {
        const int64_t odd_row = phase / 2, odd_column = phase % 2;
        pack_taps<Form>(
            s.hidden1, s.hidden2, 5 - odd_row, 5 - odd_column,
            [&](int64_t o, int64_t i, int64_t ky, int64_t kx) {
                return w.deconv1_weight[((i * s.hidden1 + o) * 9 + 2 * ky + odd_row) * 9 + 2 * kx + odd_column];
            },
            packed + at.deconv1[phase]);
    }
    pack_bias<Form>(s.hidden1, 1, w.conv1_bias, packed + at.conv1_bias);
    pack_bias<Form>(s.hidden2, 1, w.conv2_bias, packed + at.conv2_bias);
    pack_bias<Form>(s.hidden1, at.deconv1_size ? 4 : 1, w.deconv1_bias, packed + at.deconv1_bias);
    for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t i = 0; i < s.hidden1; ++i)
            packed[at.deconv2 + c * s.hidden1 + i] = w.deconv2_weight[i * s.channels + c];
        packed[at.deconv2_bias + c] = w.deconv2_bias[c];
    }
    for (int64_t n = 0; n < s.channels * s.channels * 25; ++n) packed[at.conv3 + n] = w.conv3_weight[n];
    pack_conv3_start<Form>(s, w, packed + at.conv3_start);
}

// The weights as the transposes of the layers read them, packed when a gradient is first asked for.
template <class Form>
struct TransposeLayout {
    int64_t conv3;    // [in channel][out channel][5][5], turned by half a turn
    int64_t deconv2;  // [hidden1][channel]
    int64_t deconv1_spectrum, conv2_spectrum;
    int64_t conv1;  // [channel][hidden1][5][5]
    int64_t floats;

    explicit TransposeLayout(const AutoencoderShape& s) : floats(0) {
        conv3 = take(s.channels * s.channels * 25);
        deconv2 = take(s.hidden1 * s.channels);
        deconv1_spectrum = take(spectral_floats<Form>(deconv1_transpose_transform(s)));
        conv2_spectrum = take(spectral_floats<Form>(conv2_transpose_transform(s)));
        conv1 = take(s.channels * s.hidden1 * 25);
    }

private:
    int64_t take(int64_t n) {
        const int64_t at = floats;
        floats += (n + 15) / 16 * 16;
        return at;
    }
};

template <class Form>
void pack_transposes(const AutoencoderShape& s, const AutoencoderWeights& w, float* packed) {
    const TransposeLayout<Form> at(s);
    for (int64_t out = 0; out < s.channels; ++out) {
        for (int64_t in = 0; in < s.channels; ++in) {
            for (int64_t tap = 0; tap < 25; ++tap) {
                packed[at.conv3 + (in * s.channels + out) * 25 + tap] =
                    w.conv3_weight[(out * s.channels + in) * 25 + 24 - tap];
            }
        }
    }
    for (int64_t n = 0; n < s.hidden1 * s.channels; ++n) packed[at.deconv2 + n] = w.deconv2_weight[n];
    pack_spectrum<Form>(
        deconv1_transpose_transform(s),
        [&](int64_t i, int64_t o, Taps half_turn) {
            Taps taps = {};
            deconv1_taps(s, w.deconv1_weight, o, i, taps);
            turned(taps, half_turn);
        },
        packed + at.deconv1_spectrum);
    pack_spectrum<Form>(
        conv2_transpose_transform(s),
        [&](int64_t i, int64_t o, Taps half_turn) {
            Taps taps = {};
            conv2_taps(s, w.conv2_weight, o, i, taps);
            turned(taps, half_turn);
        },
        packed + at.conv2_spectrum);
    for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t o = 0; o < s.hidden1; ++o) {
            for (int64_t tap = 0; tap < 25; ++tap) {
                packed[at.conv1 + (c * s.hidden1 + o) * 25 + tap] = w.conv1_weight[(o * s.channels + c) * 25 + tap];
            }
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
