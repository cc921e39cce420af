// The autoencoder's stages in every form and the working memory they share.
#pragma once

#include "cpu/isa/conv1_pixels.h"
#include "cpu/isa/convolution.h"
#include "cpu/kernels.h"
#include "cpu/isa/packing.h"
#include "cpu/isa/spectral.h"
#include "cpu/isa/tail.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Places in a block of working memory, in floats from its start. Each begins on a cache line and has margins on both
// sides, which let a vector begin one float before a row and end a vector's length after it.
struct Places {
    static constexpr int64_t kMargin = 16;
    int64_t floats = kMargin;  // of the block

    int64_t take(int64_t n) {
        const int64_t at = floats;
        floats = (at + n + 15) / 16 * 16 + kMargin;
        return at;
    }
    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
};

// Where one step's activations go. `half` and `upsampled` may be the same place: conv2 has read conv1's output by the
// time deconv1 writes its own.
struct Activations {
    float* half;       // conv1's: [vector of hidden1][H/2][W/2][kLanes]
    float* quarter;    // conv2's: [vector of hidden2][H/4][W/4][kLanes]
    float* upsampled;  // deconv1's: [hidden1][H/2][W/2][kLanes], or PhasePlanes
    float* even;       // deconv2's even pixels: [C][H/2][W/2][kLanes], or [images][C][H/2][W/2]
};

// Working memory of one call, in floats from its start.
template <class Form>
struct ForwardScratch : Places {
    // State and even pixels: [C][H][W][kLanes] in the throughput form, [images][C][H][W] in the planar ones. Conv1 and
    // conv2 write vectors in all.
    static constexpr int64_t images = Form::images;  // floats of a pixel, in either order
    static constexpr bool planar = Form::planar;
    int64_t state, spread, rows, half, quarter, even, sums, noise, spectrum, products;

    explicit ForwardScratch(const AutoencoderShape& s) {
        const int64_t plane = s.height * s.width;
        state = take(s.channels * plane * images);
        spread = take(!planar ? 0 : images > 1 ? s.channels * plane * kLanes : odd_columns(s) + s.channels * plane / 2);
        rows = take(planar && images == 1 ? 2 * vectors_of<Form>(s.hidden1) * kLanes * kLanes : 0);
        const int64_t planes = images * PhasePlanes(s.height / 4, s.width / 4).image(s.hidden1);
        half = take(larger(vectors_of<Form>(s.hidden1) * kLanes * plane / 4, planar ? planes : 0));
        quarter = take(vectors_of<Form>(s.hidden2) * kLanes * plane / 16);
        even = take(s.channels * plane / 4 * images);
        sums = take(planar ? s.channels * plane : 4 * s.width * kLanes);
        noise = take(planar ? s.channels * plane : 0);
        const int64_t numbers2 = conv2_transform(s).size * conv2_transform(s).size;
        const int64_t numbers1 = deconv1_transform(s).size * deconv1_transform(s).size;
        const int64_t units1 = vectors_of<Form>(s.hidden1), units2 = vectors_of<Form>(s.hidden2);
        spectrum = take(larger(numbers2 * 4 * units1, numbers1 * units2) * kLanes);
        products = take(larger(numbers2 * units2, numbers1 * vectors_of<Form>(4 * s.hidden1)) * kLanes);
    }

    Activations activations(float* scratch) const {
        return Activations{scratch + half, scratch + quarter, scratch + half, scratch + even};
    }
};

// The transposed convolution by direct sums. Position (q, p) of phase (odd row, odd column) is output pixel
// (2q + odd row, 2p + odd column).
template <class Form>
void direct_deconv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const float* quarter,
                    float* half) {
    const int64_t height = s.height / 4, width = s.width / 4;
    const PhasePlanes planes(height, width);
    Convolution layer = {};
    layer.in = quarter;
    layer.in_channels = s.hidden2;
    layer.in_height = height;
    layer.in_width = width;
    layer.bias = packed + at.deconv1_bias;
    layer.out_channels = s.hidden1;
    layer.out_width = width;
    if (Form::planar) {
        layer.out_unit_stride = planes.plane * Form::unit;
        layer.out_row_stride = planes.row;
        layer.out_step = 1;
        layer.image_stride = planes.image(s.hidden1);
    } else {
        layer.out_unit_stride = 4 * height * width * kLanes;
        layer.out_row_stride = 4 * width * kLanes;
        layer.out_step = 2 * kLanes;
    }
    for (int64_t q = 0; q < height; ++q) {
        for (int phase = 0; phase < 4; ++phase) {
            layer.weights = packed + at.deconv1[phase];
            layer.row_taps = 5 - phase / 2;
            layer.out =
                half + (Form::planar ? phase * s.hidden1 * planes.plane : (phase / 2 * 2 * width + phase % 2) * kLanes);
            if (phase % 2 == 0) {
                convolve_row<Form, TransposedEven>(layer, q);
            } else {
                convolve_row<Form, TransposedOdd>(layer, q);
            }
        }
    }
}

template <class Form>
void deconv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Activations& to,
             const ForwardScratch<Form>& part, float* scratch) {
    float* quarter = to.quarter;
    if (at.deconv1_size == 0) return direct_deconv1(s, packed, at, quarter, to.upsampled);
    SpectralLayer layer(s);
    layer.read_grid<Form>(quarter, s.hidden2);
    layer.weights = packed + at.deconv1_spectrum;
    layer.bias = packed + at.deconv1_bias;
    layer.out_channels = 4 * s.hidden1;
    layer.out_units = vectors_of<Form>(4 * s.hidden1);
    layer.spectrum = scratch + part.spectrum;
    layer.products = scratch + part.products;
    const PhasedOutput<Form, true> output(s, to.upsampled, nullptr);
    spectral_convolution<Form, 2>(at.deconv1_size, layer, output);
}

// Every image's pixels into its lanes. state: (images, pixels), spread: (pixels, kLanes)
template <class Form>
void spread_images(int64_t pixels, const float* state, float* spread) {
    for (int64_t n = 0; n < pixels; n += kLanes) {  // pixels: a multiple of 16
        Vec square[kLanes];
        for (int l = 0; l < kLanes; ++l) square[l] = load(state + l / Form::unit * pixels + n);
        transpose(square);
        for (int l = 0; l < kLanes; ++l) store(spread + (n + l) * kLanes, square[l]);
    }
}

template <class Form>
struct ImageForm {
    typedef FromImage<Form> type;
};
template <>
struct ImageForm<Throughput> {
    typedef Throughput type;
};

template <class Form>
void conv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Activations& to,
           const ForwardScratch<Form>& part, float* scratch) {
    const float* images = scratch + part.state;
    if constexpr (Form::planar && Form::images > 1) {
        spread_images<Form>(s.pixels(), images, scratch + part.spread);
        images = scratch + part.spread;
    }
    if constexpr (Form::images == 1) {
        if (conv1_by_pixels(s)) {
            separate_columns(s, images, scratch + part.spread);
            return conv1_pixels(s, packed + at.conv1, packed + at.conv1_bias, scratch + part.spread,
                                scratch + part.rows, to.half);
        }
    }
    const int64_t half_h = s.height / 2, half_w = s.width / 2;
    Convolution layer = {};
    layer.in = images;
    layer.in_channels = s.channels;
    layer.in_height = s.height;
    layer.in_width = s.width;
    layer.weights = packed + at.conv1;
    layer.bias = packed + at.conv1_bias;
    layer.row_taps = 5;
    layer.write_vectors(to.half, s.hidden1, half_h, half_w);
    for (int64_t q = 0; q < half_h; ++q) convolve_row<typename ImageForm<Form>::type, ConvolutionStride2>(layer, q);
}

template <class Form>
void direct_conv2(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const float* half,
                  float* quarter) {
    const int64_t quarter_h = s.height / 4, quarter_w = s.width / 4;
    Convolution layer = {};
    layer.in = half;
    layer.in_channels = s.hidden1;
    layer.in_height = s.height / 2;
    layer.in_width = s.width / 2;
    layer.weights = packed + at.conv2;
    layer.bias = packed + at.conv2_bias;
    layer.row_taps = 5;
    layer.write_vectors(quarter, s.hidden2, quarter_h, quarter_w);
    for (int64_t q = 0; q < quarter_h; ++q) convolve_row<Form, ConvolutionStride2>(layer, q);
}

template <class Form>
void conv2(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Activations& to,
           const ForwardScratch<Form>& part, float* scratch) {
    const float* half = to.half;
    if (at.conv2_size == 0) return direct_conv2(s, packed, at, half, to.quarter);
    SpectralLayer layer(s);
    layer.read_phases<Form>(half, s.hidden1);
    layer.weights = packed + at.conv2_spectrum;
    layer.bias = packed + at.conv2_bias;
    layer.out_channels = s.hidden2;
    layer.out_units = vectors_of<Form>(s.hidden2);
    layer.spectrum = scratch + part.spectrum;
    layer.products = scratch + part.products;
    const GridOutput<true> output(s, to.quarter, nullptr);
    spectral_convolution<Form, 1>(at.conv2_size, layer, output);
}

// state -> the even pixels of the last transposed convolution.
template <class Form>
void autoencoder_body(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at,
                      const Activations& to, const ForwardScratch<Form>& part, float* scratch) {
    conv1(s, packed, at, to, part, scratch);
    conv2(s, packed, at, to, part, scratch);
    deconv1(s, packed, at, to, part, scratch);
    even_pixels(s, packed, at, to.upsampled, to.even);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
