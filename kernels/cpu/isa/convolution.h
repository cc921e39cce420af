// Convolutions of stride 2 and, by their output phases, transposed convolutions of stride 2, with tanh after the sum.
//
// A tile is a block of output channels times a few neighbouring positions of one output row, held in registers over
// the whole sum. Taps that fall outside the input are left out, not multiplied by zero: rows by the loop's bounds,
// columns at compile time (a tile knows how many columns of its window are missing at its left and right).
#pragma once

#include "cpu/isa/elementary.h"
#include "cpu/isa/forms.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Position q along an axis reads, at tap j, input q * stride - left + (direction > 0 ? j : columns - 1 - j). A
// transposed convolution walks its input backwards as its kernel index rises.
struct ConvolutionStride2 {  // 5 taps, padding 2
    static constexpr int stride = 2, direction = 1, columns = 5, left = 2;
};
struct TransposedEven {  // output 2q of the 9-tap kernel: taps 0, 2, 4, 6, 8 read inputs q+2 .. q-2
    static constexpr int stride = 1, direction = -1, columns = 5, left = 2;
};
struct TransposedOdd {  // output 2q+1: taps 1, 3, 5, 7 read inputs q+2 .. q-1
    static constexpr int stride = 1, direction = -1, columns = 4, left = 1;
};

// One convolution, or one phase of a transposed one. Sizes in pixels, strides in floats.
struct Convolution {
    const float* in;  // [in_channels][in_height][in_width][pixel], or the channel vectors of cpu/isa/forms.h
    int64_t in_channels, in_height, in_width;
    const float* weights;  // packed, cpu/isa/forms.h
    const float* bias;     // packed
    int64_t row_taps;
    float* out;                                         // pixel of position (0, 0) in channel 0
    int64_t out_channels, out_width;                    // positions in a row
    int64_t out_unit_stride, out_row_stride, out_step;  // a unit is what one accumulator holds, Form::unit channels
    // Not 0: write [image][channel][row][column], the lanes of a vector apart, in place of [unit][row][column][kLanes].
    int64_t image_stride;

    // to: [unit of `channels`][height][width][kLanes]
    void write_vectors(float* to, int64_t channels, int64_t height, int64_t width) {
        out = to;
        out_channels = channels;
        out_width = width;
        out_unit_stride = height * width * kLanes;
        out_row_stride = width * kLanes;
        out_step = kLanes;
    }
};

struct Tile {
    const float* in;  // first in-range column of the window, row of the first in-range tap, channel 0
    int64_t in_channel_stride, in_row_step, in_channels, rows;
    const float* weights;
    int64_t weight_channel_stride;
    const float* bias;
    float* out;
    int64_t out_unit_stride, out_step;
    int64_t channels_left;  // output channels from the tile's first one on: the last vector may be partly padding
    int64_t image_stride;
};

// Activation function and store of one tile, compiled once for all tiles of a form. sums: [units][positions] vectors
template <class Form>
FASTMALADE_NOINLINE void store_outputs(const Tile& t, int units, int positions, Vec* sums) {
    int n = 0;
    for (; n + 2 <= units * positions; n += 2) {  // two at a time: each is one long chain of dependent operations
        const Vec first = tanh(sums[n]), second = tanh(sums[n + 1]);
        sums[n] = first;
        sums[n + 1] = second;
    }
    if (n < units * positions) sums[n] = tanh(sums[n]);
    for (int u = 0; u < units; ++u) {
        float* out = t.out + u * t.out_unit_stride;
        for (int p = 0; p < positions; ++p, out += t.out_step) {
            const Vec value = sums[u * positions + p];
            if (!Form::planar || t.image_stride == 0) {
                store(out, value);
            } else {
                float lanes[kLanes];
                store(lanes, value);
                const int64_t left = t.channels_left - u * Form::unit, channel_stride = t.out_unit_stride / Form::unit;
                for (int l = 0; l < kLanes; ++l) {
                    const int image = l / Form::unit, channel = l % Form::unit;
                    if (channel < left) out[image * t.image_stride + channel * channel_stride] = lanes[l];
                }
            }
        }
    }
}

// UNITS x POSITIONS accumulators; LEFT and RIGHT columns of the window lie outside the input.
template <class Form, class Axis, int UNITS, int POSITIONS, int LEFT, int RIGHT>
void tile(const Tile& t) {
    constexpr int window = (POSITIONS - 1) * Axis::stride + Axis::columns;
    Vec sum[UNITS][POSITIONS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) {
        const Vec bias = Form::weight(t.bias + u * Form::unit);
#pragma GCC unroll 8
        for (int p = 0; p < POSITIONS; ++p) sum[u][p] = bias;
    }
    const float* channel_weights = t.weights;
    for (int64_t c = 0; c < t.in_channels; ++c) {
        const float* in = t.in + Form::channel(c, t.in_channel_stride);
        const float* w = channel_weights;
        for (int64_t row = 0; row < t.rows; ++row) {
#pragma GCC unroll 8
            for (int j = 0; j < Axis::columns; ++j) {
                const int reversed = Axis::direction > 0 ? j : Axis::columns - 1 - j;
                Vec a[POSITIONS];
#pragma GCC unroll 8
                for (int p = 0; p < POSITIONS; ++p) {
                    const int column = p * Axis::stride + reversed;
                    if (column >= LEFT && column < window - RIGHT)
                        a[p] = Form::activation(in + (column - LEFT) * Form::pixel);
                }
#pragma GCC unroll 8
                for (int u = 0; u < UNITS; ++u) {
                    const Vec weight = Form::weight(w + (j * UNITS + u) * Form::unit);
#pragma GCC unroll 8
                    for (int p = 0; p < POSITIONS; ++p) {
                        const int column = p * Axis::stride + reversed;
                        if (column >= LEFT && column < window - RIGHT) sum[u][p] = fma(weight, a[p], sum[u][p]);
                    }
                }
            }
            in += t.in_row_step;
            w += Axis::columns * UNITS * Form::unit;
        }
        channel_weights += t.weight_channel_stride;
    }
    Vec sums[UNITS * POSITIONS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) {
#pragma GCC unroll 8
        for (int p = 0; p < POSITIONS; ++p) sums[u * POSITIONS + p] = sum[u][p];
    }
    store_outputs<Form>(t, UNITS, POSITIONS, sums);
}

// One position with any taps first_tap .. last_tap in range: the borders that have no compiled tile of their own.
template <class Form, class Axis, int UNITS>
void border_position(const Tile& t, int first_tap, int last_tap) {
    Vec sum[UNITS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) sum[u] = Form::weight(t.bias + u * Form::unit);
    for (int64_t c = 0; c < t.in_channels; ++c) {
        for (int64_t row = 0; row < t.rows; ++row) {
            // t.in is the leftmost in-range column, which a backward axis reads last.
            const float* in = t.in + Form::channel(c, t.in_channel_stride) + row * t.in_row_step;
            const float* w = t.weights + c * t.weight_channel_stride + row * (Axis::columns * UNITS * Form::unit);
            for (int j = first_tap; j <= last_tap; ++j) {
                const Vec a = Form::activation(in + (Axis::direction > 0 ? j - first_tap : last_tap - j) * Form::pixel);
#pragma GCC unroll 8
                for (int u = 0; u < UNITS; ++u) sum[u] = fma(Form::weight(w + (j * UNITS + u) * Form::unit), a, sum[u]);
            }
        }
    }
    Vec sums[UNITS];
#pragma GCC unroll 8
    for (int u = 0; u < UNITS; ++u) sums[u] = sum[u];
    store_outputs<Form>(t, UNITS, 1, sums);
}

// The compiled tile for these missing columns, or false. Borders are compiled where it pays: for the convolutions, at
// the block sizes of the shipped model. Transposed ones come here only where a transform would not pay
// (cpu/isa/spectral.h).
template <class Form, class Axis, int UNITS, int POSITIONS>
bool compiled_tile(const Tile& t, int64_t left, int64_t right) {
    if (left == 0 && right == 0) return tile<Form, Axis, UNITS, POSITIONS, 0, 0>(t), true;
    if constexpr (Axis::direction > 0 && (UNITS == Form::typical_units[0] || UNITS == Form::typical_units[1])) {
        constexpr int first = Axis::left, last = 1;  // missing at the left of position 0 and the right of the last
        if (left == first && right == 0) return tile<Form, Axis, UNITS, POSITIONS, first, 0>(t), true;
        if (left == 0 && right == last) return tile<Form, Axis, UNITS, POSITIONS, 0, last>(t), true;
        if constexpr (POSITIONS > 1) {
            if (left == first && right == last) return tile<Form, Axis, UNITS, POSITIONS, first, last>(t), true;
        }
    }
    return false;
}

template <class Form, class Axis, int UNITS, int POSITIONS>
bool find_tile(const Tile& t, int64_t positions, int64_t left, int64_t right) {
    if (positions == POSITIONS) return compiled_tile<Form, Axis, UNITS, POSITIONS>(t, left, right);
    if constexpr (POSITIONS > 1) return find_tile<Form, Axis, UNITS, POSITIONS - 1>(t, positions, left, right);
    return false;
}

// One block of output channels of one output row. `t` has everything but the columns.
template <class Form, class Axis, int UNITS>
void convolve_block(const Convolution& c, Tile t) {
    constexpr int most = max_positions(UNITS);
    const int64_t tiles = (c.out_width + most - 1) / most;
    const int64_t smaller = c.out_width / tiles, larger = c.out_width % tiles;
    const float* row_in = t.in;
    float* row_out = t.out;
    int64_t position = 0;
    for (int64_t n = 0; n < tiles; ++n) {
        const int64_t count = smaller + (n < larger);
        const int64_t low = position * Axis::stride - Axis::left;
        const int64_t high = (position + count - 1) * Axis::stride - Axis::left + Axis::columns - 1;
        const int64_t left = low < 0 ? -low : 0, right = high >= c.in_width ? high - c.in_width + 1 : 0;
        t.in = row_in + (low + left) * Form::pixel;
        t.out = row_out + position * t.out_step;
        if (!find_tile<Form, Axis, UNITS, most>(t, count, left, right)) {
            for (int64_t p = position; p < position + count; ++p) {
                const int64_t from = p * Axis::stride - Axis::left, to = from + Axis::columns - 1;
                const int64_t from_in = from < 0 ? 0 : from, to_in = to >= c.in_width ? c.in_width - 1 : to;
                t.in = row_in + from_in * Form::pixel;
                t.out = row_out + p * t.out_step;
                const int64_t first_tap = Axis::direction > 0 ? from_in - from : to - to_in;
                const int64_t last_tap = Axis::direction > 0 ? to_in - from : to - from_in;
                border_position<Form, Axis, UNITS>(t, (int)first_tap, (int)last_tap);
            }
        }
        position += count;
    }
}

// All output channels of output row q.
template <class Form, class Axis>
void convolve_row(const Convolution& c, int64_t q) {
    const int64_t first_row = Axis::direction > 0 ? q * Axis::stride - 2 : q + 2;  // row that tap 0 reads
    const int64_t before = Axis::direction > 0 ? -first_row : first_row - (c.in_height - 1);
    const int64_t within = Axis::direction > 0 ? c.in_height - first_row : first_row + 1;
    const int64_t first_tap = before > 0 ? before : 0, end_tap = within < c.row_taps ? within : c.row_taps;
    const Blocks<Form> blocks(c.out_channels);
    for (int64_t block = 0; block < blocks.count; ++block) {
        const int64_t unit = blocks.first(block), units = blocks.size(block), width = units * Form::unit;
        Tile t;
        t.in = c.in + (first_row + Axis::direction * first_tap) * c.in_width * Form::pixel;
        t.in_channel_stride = c.in_height * c.in_width * Form::pixel;
        t.in_row_step = Axis::direction * c.in_width * Form::pixel;
        t.in_channels = c.in_channels;
        t.rows = end_tap - first_tap;
        t.weight_channel_stride = c.row_taps * Axis::columns * width;
        t.weights = c.weights + unit * Form::unit * c.in_channels * c.row_taps * Axis::columns +
                    first_tap * Axis::columns * width;
        t.bias = c.bias + unit * Form::unit;
        t.out = c.out + q * c.out_row_stride + unit * c.out_unit_stride;
        t.out_unit_stride = c.out_unit_stride;
        t.out_step = c.out_step;
        t.image_stride = c.image_stride;
        t.channels_left = c.out_channels - unit * Form::unit;
        switch (units) {
            case 1: convolve_block<Form, Axis, 1>(c, t); break;
            case 2: convolve_block<Form, Axis, 2>(c, t); break;
            case 3: convolve_block<Form, Axis, 3>(c, t); break;
            case 4: convolve_block<Form, Axis, 4>(c, t); break;
            default: convolve_block<Form, Axis, kMaxUnits>(c, t); break;
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
