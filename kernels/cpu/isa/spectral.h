// The two middle layers, nine tenths of the arithmetic, as products of discrete Fourier transforms.
//
// By parity of rows and columns, the 9x9 transposed convolution of stride 2 is four stride-1 convolutions of at most
// 5x5 taps over one input, and the 5x5 convolution of stride 2 is the sum of four of at most 3x3 taps over the phases
// of its input. Both are thus one stride-1 convolution on a quarter-size grid, of taps that reach `reach` (2 or 1) to
// each side. A cyclic convolution of size N x N computes a tile of it. A grid of N - reach rows or fewer needs one
// tile: the zeros behind its end are also those in front of its start. A larger one is cut into tiles of N - 2 reach
// outputs, each from a window with `reach` pixels of its neighbours on every side.
//
// At 28x28 this takes a third of the arithmetic of direct sums for the transposed layer and two thirds for the other,
// and unlike transforms with real points (Winograd's) it is about as accurate as the sum itself, because all its
// factors are cosines. docs/performance.md has the counts and errors.
//
// The gradient of a layer takes the transposed sums: the same transforms, taps turned by half a turn and inputs and
// outputs in each other's place. The transpose of one layer has the shape of the other, with its own reach.
//
// The real transform is kept in its real form: N numbers for N pixels along each axis, cosine and sine parts. A pair
// (ky, kx), (ky, -kx) of complex bins is the sum and difference of four products of those.
#pragma once

#include "cpu/isa/elementary.h"
#include "cpu/isa/forms.h"
#include "cpu/isa/fourier.h"
#include "cpu/isa/spectral_layout.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// One layer. A unit is a vector: of one channel in kLanes images (throughput), of kLanes channels of one image
// (latency) or of something between. The input comes in `groups` grids (four phases, or one), of the same channels
// each.
struct SpectralLayer {
    const float* in[4] = {};                                     // by group, vector of grid position (0, 0) in unit 0
    int64_t groups = 0, in_channels = 0, in_units = 0;           // channels and units of each group
    int64_t in_unit_stride = 0, in_row_stride = 0, in_step = 0;  // in floats
    const int64_t height, width;                                 // of the grid
    const float* weights = nullptr;                              // pack_spectrum
    const float* bias = nullptr;  // [output], padded to whole vectors; null for the transpose of a layer
    int64_t out_channels = 0, out_units = 0;
    float* spectrum = nullptr;  // [N * N][group][in unit][kLanes]
    float* products = nullptr;  // [N * N][out unit][kLanes]

    explicit SpectralLayer(const AutoencoderShape& s) : height(s.height / 4), width(s.width / 4) {}

    // from: [unit][height][width][kLanes], one group
    template <class Form>
    void read_grid(const float* from, int64_t channels) {
        in[0] = from;
        groups = 1;
        in_channels = channels;
        in_units = vectors_of<Form>(channels);
        in_unit_stride = height * width * kLanes;
        in_row_stride = width * kLanes;
        in_step = kLanes;
    }

    // from: [unit][2 height][2 width][kLanes], a group for each parity of row and column
    template <class Form>
    void read_phases(const float* from, int64_t channels) {
        const int64_t row = 2 * width * kLanes;
        for (int phase = 0; phase < 4; ++phase) in[phase] = from + phase / 2 * row + phase % 2 * kLanes;
        groups = 4;
        in_channels = channels;
        in_units = vectors_of<Form>(channels);
        in_unit_stride = 2 * height * row;
        in_row_stride = 2 * row;
        in_step = 2 * kLanes;
    }
};

// x: the N numbers p[j * step], zero where j is outside from .. to-1. Usually all but the last REACH are inside.
template <int N, int REACH>
FASTMALADE_INLINE void load_line(Vec* x, const float* p, int64_t step, int64_t from, int64_t to) {
    if (from == 0 && to == N - REACH) {
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) x[j] = j < N - REACH ? load(p + j * step) : Vec{};
    } else {
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) x[j] = j >= from && j < to ? load(p + j * step) : Vec{};
    }
}

// Transforms one unit of the window whose pixel (0, 0) is grid position (top, left), zeros outside the grid.
template <int N, int REACH>
FASTMALADE_NOINLINE void forward_unit(const SpectralLayer& s, int64_t group, int64_t unit, int64_t top, int64_t left) {
    using B = Bins<N>;
    constexpr int pairs = Line<N>::pairs, last = N / 2;
    const float* in = s.in[group] + unit * s.in_unit_stride + top * s.in_row_stride + left * s.in_step;
    const int64_t from_row = top < 0 ? -top : 0, to_row = s.height - top < N ? s.height - top : N;
    const int64_t from_column = left < 0 ? -left : 0, to_column = s.width - left < N ? s.width - left : N;
    alignas(64) float rows[N * N * kLanes];  // [number of the row's transform][row]
    for (int64_t y = from_row; y < to_row; ++y) {
        Vec x[N];
        load_line<N, REACH>(x, in + y * s.in_row_stride, s.in_step, from_column, to_column);
        const Line<N> line = Line<N>::forward(x);
#pragma GCC unroll 16
        for (int k = 0; k <= last; ++k) store(rows + (k * N + y) * kLanes, line.cosine[k]);
#pragma GCC unroll 16
        for (int k = 1; k <= pairs; ++k) store(rows + ((last + k) * N + y) * kLanes, line.sine[k]);
    }
    float* out = s.spectrum + (group * s.in_units + unit) * kLanes;
    const int64_t plane = s.groups * s.in_units * kLanes;
    for (int kx = 0; kx <= last; kx += Line<N>::even ? last : last + 1) {
        Vec x[N];
        load_line<N, REACH>(x, rows + kx * N * kLanes, kLanes, from_row, to_row);
        const Line<N> line = Line<N>::forward(x);
        store(out + B::real_index(kx, 0) * plane, line.cosine[0]);
        if (Line<N>::even) store(out + B::real_index(kx, last) * plane, line.cosine[last]);
        float* bin = out + B::in_real_column(kx, 1) * plane;
#pragma GCC unroll 16
        for (int ky = 1; ky <= pairs; ++ky, bin += 2 * plane) {
            store(bin, line.cosine[ky]);
            store(bin + plane, line.sine[ky]);
        }
    }
    for (int kx = 1; kx <= pairs; ++kx) {
        Vec x[N];
        load_line<N, REACH>(x, rows + kx * N * kLanes, kLanes, from_row, to_row);
        const Line<N> c = Line<N>::forward(x);
        load_line<N, REACH>(x, rows + (last + kx) * N * kLanes, kLanes, from_row, to_row);
        const Line<N> s_line = Line<N>::forward(x);
        float* lone = out + B::lone(kx, 0) * plane;
        store(lone, c.cosine[0]);
        store(lone + plane, s_line.cosine[0]);
        if (Line<N>::even) {
            store(lone + 2 * plane, c.cosine[last]);
            store(lone + 3 * plane, s_line.cosine[last]);
        }
        float* twin = out + B::twin(kx, 1) * plane;
#pragma GCC unroll 16
        for (int ky = 1; ky <= pairs; ++ky, twin += 4 * plane) {
            store(twin, c.cosine[ky] - s_line.sine[ky]);
            store(twin + plane, c.sine[ky] + s_line.cosine[ky]);
            store(twin + 2 * plane, c.cosine[ky] + s_line.sine[ky]);
            store(twin + 3 * plane, c.sine[ky] - s_line.cosine[ky]);
        }
    }
}

constexpr int64_t kPrefetchDistance = 512;  // floats

// Products of one bin for UNITS output vectors, summed over groups and input channels in their order.
// in: [re, -im][group][in unit][kLanes] of the bin; weights: [group][in channel][unit][re, im][Form::unit];
// out: [re, -im][out unit][kLanes]
template <class Form, int UNITS>
FASTMALADE_INLINE void multiply_complex(const SpectralLayer& s, const float* in, const float* w, float* out) {
    const int64_t in_plane = s.groups * s.in_units * kLanes, out_plane = s.out_units * kLanes;
    Vec re[UNITS], im[UNITS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) re[u] = im[u] = Vec{};
    for (int64_t group = 0; group < s.groups; ++group) {
        for (int64_t c = 0; c < s.in_channels; ++c, w += 2 * UNITS * Form::unit) {
            const float* x = in + group * s.in_units * kLanes + Form::channel(c, kLanes);
            const Vec a = Form::activation(x), b = Form::activation(x + in_plane), minus_a = -a;
            if constexpr (Form::images == 1) {
                // The weights exceed the second-level cache and are read once in a step: the processor's own
                // prefetching does not look far enough ahead.
#pragma GCC unroll 16
                for (int n = 0; n < 2 * UNITS * Form::unit; n += 16) __builtin_prefetch(w + kPrefetchDistance + n);
            }
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) {
                const Vec p = Form::weight(w + 2 * u * Form::unit), q = Form::weight(w + (2 * u + 1) * Form::unit);
                re[u] = fma(p, a, re[u]);
                im[u] = fma(p, b, im[u]);
                re[u] = fma(q, b, re[u]);
                im[u] = fma(q, minus_a, im[u]);
            }
        }
    }
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) {
        store(out + u * kLanes, re[u]);
        store(out + out_plane + u * kLanes, im[u]);
    }
}

// The same for a real bin: [group][in unit][kLanes], [group][in channel][unit][Form::unit], [out unit][kLanes].
template <class Form, int UNITS>
FASTMALADE_INLINE void multiply_real(const SpectralLayer& s, const float* in, const float* w, float* out) {
    Vec re[UNITS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) re[u] = Vec{};
    for (int64_t group = 0; group < s.groups; ++group) {
        for (int64_t c = 0; c < s.in_channels; ++c, w += UNITS * Form::unit) {
            const Vec a = Form::activation(in + group * s.in_units * kLanes + Form::channel(c, kLanes));
#pragma GCC unroll 8
            for (int u = 0; u < UNITS; ++u) re[u] = fma(Form::weight(w + u * Form::unit), a, re[u]);
        }
    }
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) store(out + u * kLanes, re[u]);
}

template <class Form, int UNITS>
FASTMALADE_INLINE void multiply_block(const SpectralLayer& s, bool complex, const float* in, const float* w,
                                      float* out) {
    if (complex) {
        multiply_complex<Form, UNITS>(s, in, w, out);
    } else {
        multiply_real<Form, UNITS>(s, in, w, out);
    }
}

template <class Form, int N>
FASTMALADE_NOINLINE void multiply_bins(const SpectralLayer& s) {
    const Blocks<Form> blocks(s.out_channels);
    const float* w = s.weights;
    for (int plane = 0; plane < N * N;) {
        const bool complex = plane >= Bins<N>::real;
        const int numbers = complex ? 2 : 1;
        const float* in = s.spectrum + plane * s.groups * s.in_units * kLanes;
        float* out = s.products + plane * s.out_units * kLanes;
        for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t units = blocks.size(block);
            switch (units) {
                case 1: multiply_block<Form, 1>(s, complex, in, w, out); break;
                case 2: multiply_block<Form, 2>(s, complex, in, w, out); break;
                case 3: multiply_block<Form, 3>(s, complex, in, w, out); break;
                case 4: multiply_block<Form, 4>(s, complex, in, w, out); break;
                default: multiply_block<Form, kMaxUnits>(s, complex, in, w, out); break;
            }
            w += numbers * units * Form::unit * s.groups * s.in_channels;
            out += units * kLanes;
        }
        plane += numbers;
    }
}

// Gives put(row, its columns) for rows first .. first+rows-1 of the cyclic result and likewise columns, both counted
// from 0: tanh(bias + sum) of a LAYER, the bare sum of a layer's transpose.
template <int N, bool LAYER, class Put>
FASTMALADE_INLINE void inverse_unit(const SpectralLayer& s, int64_t unit, Vec bias, int64_t first, int64_t rows,
                                    int64_t columns, Put put) {
    using B = Bins<N>;
    constexpr int pairs = Line<N>::pairs, last = N / 2;
    const float* in = s.products + unit * kLanes;
    const int64_t plane = s.out_units * kLanes;
    alignas(64) float lines[N * N * kLanes];  // [row][number of the row's transform]
    for (int kx = 0; kx <= last; kx += Line<N>::even ? last : last + 1) {
        Line<N> line;
        line.cosine[0] = load(in + B::real_index(kx, 0) * plane);
        if (Line<N>::even) line.cosine[last] = load(in + B::real_index(kx, last) * plane);
        const float* bin = in + B::in_real_column(kx, 1) * plane;
#pragma GCC unroll 16
        for (int ky = 1; ky <= pairs; ++ky, bin += 2 * plane) {
            line.cosine[ky] = load(bin);
            line.sine[ky] = load(bin + plane);
        }
        Vec y[N];
        line.inverse(y);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) store(lines + (j * N + kx) * kLanes, y[j]);
    }
    for (int kx = 1; kx <= pairs; ++kx) {
        Line<N> c, s_line;
        const float* lone = in + B::lone(kx, 0) * plane;
        c.cosine[0] = load(lone);
        s_line.cosine[0] = load(lone + plane);
        if (Line<N>::even) {
            c.cosine[last] = load(lone + 2 * plane);
            s_line.cosine[last] = load(lone + 3 * plane);
        }
        const float* twin = in + B::twin(kx, 1) * plane;
#pragma GCC unroll 16
        for (int ky = 1; ky <= pairs; ++ky, twin += 4 * plane) {
            const Vec re = load(twin), im = load(twin + plane), re2 = load(twin + 2 * plane),
                      im2 = load(twin + 3 * plane);
            c.cosine[ky] = re + re2;
            s_line.sine[ky] = re2 - re;
            c.sine[ky] = im + im2;
            s_line.cosine[ky] = im - im2;
        }
        Vec y[N];
        c.inverse(y);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) store(lines + (j * N + kx) * kLanes, y[j]);
        s_line.inverse(y);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) store(lines + (j * N + last + kx) * kLanes, y[j]);
    }
    for (int64_t row = 0; row < rows; ++row) {
        const float* numbers = lines + (first + row) * N * kLanes;
        Line<N> line;
#pragma GCC unroll 16
        for (int k = 0; k <= last; ++k) line.cosine[k] = load(numbers + k * kLanes);
#pragma GCC unroll 16
        for (int k = 1; k <= pairs; ++k) line.sine[k] = load(numbers + (last + k) * kLanes);
        if (LAYER) line.cosine[0] = line.cosine[0] + bias;
        Vec x[N];
        line.inverse(x);
        if (LAYER) {
            for (int64_t n = first; n < first + columns; ++n) x[n] = tanh(x[n]);
        }
        put(row, x + first);
    }
}

// d tanh / d (its argument), from the value y of tanh.
FASTMALADE_INLINE Vec slope(Vec y) { return fma(-y, y, broadcast(1.0f)); }

// Where phased outputs go, numbered phase by phase. Throughput: half-size images, [hidden1][2 height][2 width][kLanes].
// Planar forms: PhasePlanes (cpu/isa/spectral_layout.h). Transposes of layers (not LAYER) multiply by the slope of tanh
// at `activation`, which lies as the output does.
template <class Form, bool LAYER>
struct PhasedOutput {
    static constexpr bool layer = LAYER;
    float* const out;
    const float* const activation;         // null for a layer
    const int64_t hidden1, height, width;  // of the grid
    const PhasePlanes planes;

    PhasedOutput(const AutoencoderShape& s, float* to, const float* at)
        : out(to),
          activation(at),
          hidden1(s.hidden1),
          height(s.height / 4),
          width(s.width / 4),
          planes(height, width) {}

    // Outputs of one unit from grid position (row, column) on, given row by row by each(put).
    template <class Each>
    inline void write(int64_t unit, int64_t row, int64_t column, int64_t columns, Each each) const {
        if constexpr (!Form::planar) {
            const int64_t phase = unit / hidden1, channel = unit % hidden1, row_step = 4 * width;
            const int64_t tile =
                ((channel * 2 * height + 2 * row + phase / 2) * 2 * width + 2 * column + phase % 2) * kLanes;
            each([&](int64_t q, const Vec* values) {
                for (int64_t p = 0; p < columns; ++p) put(tile + (q * row_step + 2 * p) * kLanes, values[p]);
            });
        } else {
            const int64_t first_channel = unit * Form::unit, left = 4 * hidden1 - first_channel;
            const int64_t count = left < Form::unit ? left : Form::unit;
            const int64_t tile = first_channel * planes.plane + row * planes.row + column;
            each([&](int64_t q, const Vec* values) {
                for (int64_t p = 0; p < columns; p += kLanes) {
                    Vec square[kLanes];
                    for (int l = 0; l < kLanes; ++l) square[l] = p + l < columns ? values[p + l] : Vec{};
                    transpose(square);
                    // Lanes beyond `columns` fall on columns that are written later, or on the row's margin.
                    for (int image = 0; image < Form::images; ++image) {
                        int64_t to = image * planes.image(hidden1) + tile + q * planes.row + p;
                        for (int64_t c = 0; c < count; ++c, to += planes.plane) put(to, square[image * Form::unit + c]);
                    }
                }
            });
        }
    }

private:
    inline __attribute__((always_inline)) void put(int64_t at, Vec value) const {
        store(out + at, LAYER ? value : value * slope(load(activation + at)));
    }
};

// The other layer writes vectors: [unit][height][width][kLanes].
template <bool LAYER>
struct GridOutput {
    static constexpr bool layer = LAYER;
    float* const out;
    const float* const activation;  // null for a layer
    const int64_t height, width;

    GridOutput(const AutoencoderShape& s, float* to, const float* at)
        : out(to), activation(at), height(s.height / 4), width(s.width / 4) {}

    template <class Each>
    inline void write(int64_t unit, int64_t row, int64_t column, int64_t columns, Each each) const {
        const int64_t tile = ((unit * height + row) * width + column) * kLanes;
        each([&](int64_t q, const Vec* values) {
            for (int64_t p = 0; p < columns; ++p) {
                const int64_t at = tile + (q * width + p) * kLanes;
                store(out + at, LAYER ? values[p] : values[p] * slope(load(activation + at)));
            }
        });
    }
};

template <class Form, int N, class Output>
FASTMALADE_NOINLINE void inverse_all(const SpectralLayer& s, int64_t row, int64_t column, int64_t first, int64_t rows,
                                     int64_t columns, const Output& output) {
    for (int64_t unit = 0; unit < s.out_units; ++unit) {
        const Vec bias = Output::layer ? Form::weight(s.bias + unit * Form::unit) : Vec{};
        output.write(unit, row, column, columns,
                     [&](auto put) { inverse_unit<N, Output::layer>(s, unit, bias, first, rows, columns, put); });
    }
}

template <class Form, int N, int REACH, class Output>
void spectral_convolution_of_size(const SpectralLayer& s, const Output& output) {
    const Tiling tiles(s.height, s.width, N, REACH);
    const int64_t step = tiles.step, before = tiles.before;
    for (int64_t row = 0; row < s.height; row += step) {
        const int64_t rows = s.height - row < step ? s.height - row : step;
        for (int64_t column = 0; column < s.width; column += step) {
            const int64_t columns = s.width - column < step ? s.width - column : step;
            for (int64_t group = 0; group < s.groups; ++group) {
                for (int64_t unit = 0; unit < s.in_units; ++unit) {
                    forward_unit<N, REACH>(s, group, unit, row - before, column - before);
                }
            }
            multiply_bins<Form, N>(s);
            inverse_all<Form, N>(s, row, column, before, rows, columns, output);
        }
    }
}

// size: of the transform, as transform_size gives it for this reach
template <class Form, int REACH, class Output>
void spectral_convolution(int size, const SpectralLayer& s, const Output& output) {
    switch (size) {
        case 7 + REACH: return spectral_convolution_of_size<Form, 7 + REACH, REACH>(s, output);
        case 8 + REACH: return spectral_convolution_of_size<Form, 8 + REACH, REACH>(s, output);
        default: return spectral_convolution_of_size<Form, 12, REACH>(s, output);
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
