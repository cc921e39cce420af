// The transposes of the autoencoder's stages: from the gradient with respect to a stage's output to that with respect
// to its input. In order conv3, deconv2, deconv1, conv2, conv1, each with the slope of the tanh that it comes to. Every
// sum has one order (output channel, ky, kx, in-range taps only), so all forms give the same bits. None is inlined: in
// one function they would push each other's values out of registers.
#pragma once

#include "cpu/isa/conv1_transpose.h"
#include "cpu/isa/stages.h"
#include "cpu/isa/transpose_scratch.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// One step's way back: gradient <- own gradient + J_r^T (scale gradient), the gradient first stopped where the step's
// clamp acted, if it is `bounded`.
struct Back {
    float scale, own;
    bool bounded;
};

// The slope of the last tanh. g, record, out: as TransposeScratch says
FASTMALADE_INLINE Vec stopped(Vec g, const float* within_bounds) {
    return from_bits(bits(g) & bits(load(within_bounds)));
}

FASTMALADE_NOINLINE inline void last_slope(const AutoencoderShape& s, const Back& b, const Record<Throughput>& at,
                                           const float* record, float* g, float* out) {
    for (int64_t n = 0; n < s.pixels() * kLanes; n += kLanes) {
        Vec v = load(g + n);
        if (b.bounded) {
            v = stopped(v, record + at.within_bounds + n);
            store(g + n, v);
        }
        store(out + n, broadcast(b.scale) * v * slope(load(record + at.reconstruction + n)));
    }
}

template <int IMAGES>
FASTMALADE_NOINLINE void last_slope(const AutoencoderShape& s, const Back& b, const Record<Group<IMAGES>>& at,
                                    const float* record, float* g, float* out) {
    const SplitRow split(s.width);
    const auto stopped_slope = [&](int64_t n) {
        Vec v = load(g + n);
        if (b.bounded) {
            v = stopped(v, record + at.within_bounds + n);
            store(g + n, v);
        }
        return broadcast(b.scale) * v * slope(load(record + at.reconstruction + n));
    };
    for (int64_t row = 0; row < IMAGES * s.channels * s.height; ++row, out += split.floats) {
        for (int64_t x = 0; x < s.width; x += 2 * kLanes) {
            // Pixels beyond the row belong to the next row, where they are done again, or to a margin that nobody
            // reads.
            const int64_t n = row * s.width + x;
            const Vec first = stopped_slope(n), second = x + kLanes < s.width ? stopped_slope(n + kLanes) : Vec{};
            Vec even, odd;
            separate(first, second, &even, &odd);
            store(out + x / 2, even);
            store(out + split.part + x / 2, odd);
        }
    }
}

// Taps ky of a 5-tap convolution of stride 2 that read rows 0 .. height-1 for output row q.
struct StridedRows {
    int64_t first, last, row;  // row: read by the first tap
    StridedRows(int64_t q, int64_t height) {
        first = q == 0 ? 2 : 0;
        last = height - 1 - (2 * q - 2) < 4 ? height - 1 - (2 * q - 2) : 4;
        row = 2 * q - 2 + first;
    }
};

// conv3 seen from the even pixels: a convolution of stride 2 with the taps turned. Two neighbouring even pixels at
// once. in: column 2q - 2 of the first row; weights: [out channel][5][5]
template <bool LEFT_BORDER, bool RIGHT_BORDER>
FASTMALADE_INLINE void add_inner_gradients(Vec sum[2], const float* in, int64_t channels, int64_t channel_stride,
                                           int64_t row_stride, const float* weights, const StridedRows& taps) {
    for (int64_t o = 0; o < channels; ++o) {
        const float* row = in + o * channel_stride;
        for (int64_t ky = taps.first; ky <= taps.last; ++ky, row += row_stride) {
            const float* w = weights + o * 25 + ky * 5;
            if (!LEFT_BORDER) {
                sum[0] = fma(broadcast(w[0]), load(row), sum[0]);
                sum[0] = fma(broadcast(w[1]), load(row + kLanes), sum[0]);
            }
#pragma GCC unroll 5
            for (int j = 0; j < 5; ++j) {
                if (j >= 2) sum[0] = fma(broadcast(w[j]), load(row + j * kLanes), sum[0]);
                if (j < 4 || !RIGHT_BORDER) sum[1] = fma(broadcast(w[j]), load(row + (j + 2) * kLanes), sum[1]);
            }
        }
    }
}

// in: [C][H][W][kLanes], out: [C][H/2][W/2][kLanes]; packed: the transposes
FASTMALADE_NOINLINE inline void conv3_transpose(const AutoencoderShape& s, const float* packed,
                                                const TransposeLayout<Throughput>& at, const Record<Throughput>& kept,
                                                const float* record, const float* in, float* out) {
    const int64_t columns = s.width / 2, row_stride = s.width * kLanes, channel_stride = s.height * row_stride;
    for (int64_t i = 0; i < s.channels; ++i) {
        const float* w = packed + at.conv3 + i * s.channels * 25;
        for (int64_t q = 0; q < s.height / 2; ++q) {
            const StridedRows taps(q, s.height);
            for (int64_t p = 0; p < columns; p += 2) {  // W is a multiple of 4, so W / 2 is even
                const float* from = in + taps.row * row_stride + (2 * p - 2) * kLanes;
                Vec sum[2] = {};
                const bool left = p == 0, right = p + 2 == columns;
                if (left && right) {
                    add_inner_gradients<true, true>(sum, from, s.channels, channel_stride, row_stride, w, taps);
                } else if (left) {
                    add_inner_gradients<true, false>(sum, from, s.channels, channel_stride, row_stride, w, taps);
                } else if (right) {
                    add_inner_gradients<false, true>(sum, from, s.channels, channel_stride, row_stride, w, taps);
                } else {
                    add_inner_gradients<false, false>(sum, from, s.channels, channel_stride, row_stride, w, taps);
                }
                const int64_t n = ((i * (s.height / 2) + q) * columns + p) * kLanes;
                const float* even = record + kept.even + n;
                store(out + n, sum[0] * slope(load(even)));
                store(out + n + kLanes, sum[1] * slope(load(even + kLanes)));
            }
        }
    }
}

// in: [images][C][H] SplitRow, out: [images][C] 4 planes. A vector is kLanes neighbouring even pixels.
template <int IMAGES>
FASTMALADE_NOINLINE void conv3_transpose(const AutoencoderShape& s, const float* packed,
                                         const TransposeLayout<Group<IMAGES>>& at, const Record<Group<IMAGES>>& kept,
                                         const float* record, const float* in, float* out) {
    const SplitRow split(s.width);
    const PhasePlanes planes(s.height / 4, s.width / 4);
    const int64_t columns = s.width / 2;
    for (int64_t n = 0; n < IMAGES * s.channels; ++n) {
        const int64_t i = n % s.channels;
        const float* image = in + (n - i) * s.height * split.floats;
        for (int64_t q = 0; q < s.height / 2; ++q) {
            const StridedRows taps(q, s.height);
            const auto gradients = [&](int64_t p) {
                const VecInt column = lane_indices() + (int32_t)p;
                const VecInt first = column == 0, last = column == (int32_t)(columns - 1);
                Vec sum = {};
                for (int64_t o = 0; o < s.channels; ++o) {
                    const float* row = image + (o * s.height + taps.row) * split.floats + p;
                    for (int64_t ky = taps.first; ky <= taps.last; ++ky, row += split.floats) {
                        const float* w = packed + at.conv3 + (i * s.channels + o) * 25 + ky * 5;
                        const float* odd = row + split.part;
                        sum = select(first, sum, fma(broadcast(w[0]), load(row - 1), sum));
                        sum = select(first, sum, fma(broadcast(w[1]), load(odd - 1), sum));
                        sum = fma(broadcast(w[2]), load(row), sum);
                        sum = fma(broadcast(w[3]), load(odd), sum);
                        sum = select(last, sum, fma(broadcast(w[4]), load(row + 1), sum));
                    }
                }
                return sum * slope(load(record + kept.even + (n * (s.height / 2) + q) * columns + p));
            };
            // Vectors reach beyond the row's columns into the margin of a row of the planes.
            float* to = out + (4 * n + q % 2 * 2) * planes.plane + q / 2 * planes.row;
            for (int64_t p = 0; p < columns; p += 2 * kLanes, to += kLanes) {
                const Vec first = gradients(p), second = p + kLanes < columns ? gradients(p + kLanes) : Vec{};
                Vec even, odd;
                separate(first, second, &even, &odd);
                store(to, even);
                store(to + planes.plane, odd);
            }
        }
    }
}

// in: [C][H/2][W/2][kLanes], out: [hidden1][H/2][W/2][kLanes]
FASTMALADE_NOINLINE inline void deconv2_transpose(const AutoencoderShape& s, const float* packed,
                                                  const TransposeLayout<Throughput>& at, const Record<Throughput>& kept,
                                                  const float* record, const float* in, float* out) {
    const int64_t floats = s.height / 2 * (s.width / 2) * kLanes;
    for (int64_t o = 0; o < s.hidden1; ++o) {
        const float* w = packed + at.deconv2 + o * s.channels;
        const float* activation = record + kept.upsampled + o * floats;
        for (int64_t n = 0; n < floats; n += kLanes) {
            Vec sum = {};
            for (int64_t c = 0; c < s.channels; ++c) sum = fma(broadcast(w[c]), load(in + c * floats + n), sum);
            store(out + o * floats + n, sum * slope(load(activation + n)));
        }
    }
}

// in: [images][C] 4 planes, out: [unit of 4 hidden1][H/4][W/4][kLanes], phases counted as channels
template <int IMAGES>
FASTMALADE_NOINLINE void deconv2_transpose(const AutoencoderShape& s, const float* packed,
                                           const TransposeLayout<Group<IMAGES>>& at, const Record<Group<IMAGES>>& kept,
                                           const float* record, const float* in, float* out) {
    typedef Group<IMAGES> Form;
    const int64_t height = s.height / 4, width = s.width / 4, channels = 4 * s.hidden1;
    const PhasePlanes planes(height, width);
    for (int64_t unit = 0; unit < vectors_of<Form>(channels); ++unit) {
        for (int64_t row = 0; row < height; ++row) {
            for (int64_t p = 0; p < width; p += kLanes) {
                const int64_t place = row * planes.row + p;
                Vec square[kLanes];
                for (int64_t l = 0; l < kLanes; ++l) {
                    const int64_t image = l / Form::unit, channel = unit * Form::unit + l % Form::unit;
                    square[l] = Vec{};
                    if (channel >= channels) continue;
                    const float* w = packed + at.deconv2 + channel % s.hidden1 * s.channels;
                    const float* gradient = in + (4 * image * s.channels + channel / s.hidden1) * planes.plane + place;
                    const float* activation = record + kept.upsampled + image * planes.image(s.hidden1);
                    for (int64_t c = 0; c < s.channels; ++c) {
                        square[l] = fma(broadcast(w[c]), load(gradient + 4 * c * planes.plane), square[l]);
                    }
                    square[l] = square[l] * slope(load(activation + channel * planes.plane + place));
                }
                transpose(square);
                float* to = out + ((unit * height + row) * width + p) * kLanes;
                for (int64_t l = 0; l < kLanes && p + l < width; ++l) store(to + l * kLanes, square[l]);
            }
        }
    }
}

template <class Form>
FASTMALADE_NOINLINE void deconv1_transpose(const AutoencoderShape& s, const float* packed,
                                           const TransposeLayout<Form>& at, const Record<Form>& kept,
                                           const float* record, const TransposeScratch<Form>& part, float* scratch) {
    SpectralLayer layer(s);
    if constexpr (Form::planar) {  // the phases are channels of one grid
        layer.read_grid<Form>(scratch + part.half, 4 * s.hidden1);
    } else {
        layer.read_phases<Form>(scratch + part.half, s.hidden1);
    }
    layer.weights = packed + at.deconv1_spectrum;
    layer.out_channels = s.hidden2;
    layer.out_units = vectors_of<Form>(s.hidden2);
    layer.spectrum = scratch + part.spectrum;
    layer.products = scratch + part.products;
    const GridOutput<false> output(s, scratch + part.quarter, record + kept.quarter);
    spectral_convolution<Form, 2>(deconv1_transpose_transform(s).size, layer, output);
}

template <class Form>
FASTMALADE_NOINLINE void conv2_transpose(const AutoencoderShape& s, const float* packed,
                                         const TransposeLayout<Form>& at, const Record<Form>& kept, const float* record,
                                         const TransposeScratch<Form>& part, float* scratch) {
    SpectralLayer layer(s);
    layer.read_grid<Form>(scratch + part.quarter, s.hidden2);
    layer.weights = packed + at.conv2_spectrum;
    layer.out_channels = 4 * s.hidden1;
    layer.out_units = vectors_of<Form>(4 * s.hidden1);
    layer.spectrum = scratch + part.spectrum;
    layer.products = scratch + part.products;
    const PhasedOutput<Form, false> output(s, scratch + part.first, record + kept.half);
    spectral_convolution<Form, 1>(conv2_transpose_transform(s).size, layer, output);
}

// g <- own g + J_r^T (scale g) for the step that `record` keeps; g lies in the scratch memory, at part.cotangent.
template <class Form>
void step_transpose(const AutoencoderShape& s, const float* packed, const TransposeLayout<Form>& at, const Back& b,
                    const Record<Form>& kept, const float* record, const TransposeScratch<Form>& part, float* scratch) {
    last_slope(s, b, kept, record, scratch + part.cotangent, scratch + part.inner);
    conv3_transpose(s, packed, at, kept, record, scratch + part.inner, scratch + part.even);
    deconv2_transpose(s, packed, at, kept, record, scratch + part.even, scratch + part.half);
    deconv1_transpose(s, packed, at, kept, record, part, scratch);
    conv2_transpose(s, packed, at, kept, record, part, scratch);
    conv1_transpose(s, packed, at, part, b.own, scratch);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
