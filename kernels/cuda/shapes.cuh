// Shapes, tiles, and where weights and activations lie.
//
// Every convolution is cut into tiles of neighbouring positions of one row times output channels; one thread sums one
// tile in registers. Tiles of any size add in the same order (convolution.cuh), so forms that differ only in their
// tiles give the same bits.
#pragma once

#include "cuda/platform.cuh"

namespace fastmalade::cuda {

// Threads of a block. Predicted, not measured: with eight warps each of the four schedulers has two, and a thread may
// use all 255 registers, which a tile of 70 sums needs (docs/gpu-resources.md: 220 on sm_90, nothing spilled).
constexpr int kBlockThreads = 256;

// Paper 000's sizes for digits. Known when the kernel is compiled: loops unroll, and taps outside the image cost
// nothing.
struct DigitShape {
    static constexpr bool is_fixed = true;
    static constexpr int channels = 1, height = 28, width = 28, hidden1 = 10, hidden2 = 25;
};

// Sizes known when the kernel is launched.
struct AnyShape {
    static constexpr bool is_fixed = false;
    int channels, height, width, hidden1, hidden2;
};

// Width of a stage's input if it is known to the compiler, else 0.
template <class Shape>
FASTMALADE_BOTH constexpr int fixed_width(int divisor) {
    if constexpr (Shape::is_fixed) return Shape::width / divisor;
    return 0;
}

// Tile sizes: positions of a row, and output channels of each layer forward and of its vector-Jacobian product (_back).
// All of them are predicted, none is measured on a GPU. What was checked by compiling is that no kernel spills
// registers (docs/gpu-resources.md).

// Whole rows of seven on the quarter grid of a 28x28 image: a thread's 70 sums leave about five multiply-adds for every
// word read from shared memory. deconv1 has all ten channels in one thread and so ends in the 1x1 layer without storing
// them. Seven of conv2's 25 channels make four tasks, as many as the warps can share evenly.
struct RowTiles {
    static constexpr int positions = 7;
    static constexpr int conv1 = 10, conv2 = 7, deconv1 = 10;
    static constexpr int deconv1_back = 7, conv2_back = 10;
};

// Any shape. Smaller tiles, of which less is wasted where a row or the channels do not divide evenly.
struct GeneralTiles {
    static constexpr int positions = 4;
    static constexpr int conv1 = 5, conv2 = 5, deconv1 = 5;
    static constexpr int deconv1_back = 5, conv2_back = 5;
};

// As many threads as one image can have with two sums each.
struct SmallTiles {
    static constexpr int positions = 2;
    static constexpr int conv1 = 1, conv2 = 1, deconv1 = 1;
    static constexpr int deconv1_back = 1, conv2_back = 1;
};

FASTMALADE_BOTH constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }
FASTMALADE_BOTH constexpr int round_up(int n, int to) { return divide_up(n, to) * to; }

// Where each array of the packed model lies, in floats. A convolution is [block][in channel][ky][kx][OC], the taps of a
// row together padded to 16 bytes; a transposed one is that once per output phase 2 (y mod 2) + (x mod 2), with the
// taps of that phase in the order of the input positions they read. Channels beyond the last have zero weights and
// biases.
struct PackedLayout {
    int conv1, conv1_bias, conv2, conv2_bias, deconv1[4], deconv1_bias;
    int deconv2, deconv2_bias;  // [channel][hidden1], [channel]
    int conv3, conv3_start;     // [out channel][in channel][5][5]; [row case][column case][out channel] (tail.cuh)
    int forward_floats;         // all of the above
    // The same layers from output to input.
    int conv3_back, deconv1_back, conv2_back[4], conv1_back[4];
    int floats;
};

FASTMALADE_BOTH constexpr int packed_row(int taps, int oc) { return round_up(taps * oc, 4); }

// Floats of one block of output channels, rows x columns taps.
FASTMALADE_BOTH constexpr int packed_block(int in_channels, int rows, int columns, int oc) {
    return in_channels * rows * packed_row(columns, oc);
}

template <class Tiles, class Shape>
FASTMALADE_BOTH constexpr PackedLayout packed_layout(const Shape& s) {
    PackedLayout at{};
    int n = 0;
    const int blocks1 = divide_up(s.hidden1, Tiles::conv1), blocks2 = divide_up(s.hidden2, Tiles::conv2);
    const int blocks3 = divide_up(s.hidden1, Tiles::deconv1);
    at.conv1 = n, n += blocks1 * packed_block(s.channels, 5, 5, Tiles::conv1);
    at.conv1_bias = n, n += round_up(blocks1 * Tiles::conv1, 4);
    at.conv2 = n, n += blocks2 * packed_block(s.hidden1, 5, 5, Tiles::conv2);
    at.conv2_bias = n, n += round_up(blocks2 * Tiles::conv2, 4);
    for (int phase = 0; phase < 4; ++phase) {
        at.deconv1[phase] = n;
        n += blocks3 * packed_block(s.hidden2, 5 - phase / 2, 5 - phase % 2, Tiles::deconv1);
    }
    at.deconv1_bias = n, n += round_up(blocks3 * Tiles::deconv1, 4);
    at.deconv2 = n, n += round_up(s.channels * s.hidden1, 4);
    at.deconv2_bias = n, n += round_up(s.channels, 4);
    at.conv3 = n, n += round_up(s.channels * s.channels * 25, 4);
    at.conv3_start = n, n += 36 * s.channels;
    at.forward_floats = n;
    at.conv3_back = n, n += s.channels * packed_block(s.channels, 5, 5, 1);
    at.deconv1_back = n;
    n += divide_up(s.hidden2, Tiles::deconv1_back) * packed_block(s.hidden1, 9, 9, Tiles::deconv1_back);
    for (int phase = 0; phase < 4; ++phase) {
        at.conv2_back[phase] = n;
        n += divide_up(s.hidden1, Tiles::conv2_back) *
             packed_block(s.hidden2, 3 - phase / 2, 3 - phase % 2, Tiles::conv2_back);
    }
    for (int phase = 0; phase < 4; ++phase) {
        at.conv1_back[phase] = n;
        n += s.channels * packed_block(s.hidden1, 3 - phase / 2, 3 - phase % 2, 1);
    }
    at.floats = n;
    return at;
}

// One array [channel][row][column][image of the group]; neighbouring lanes hold neighbouring images.
struct Plane {
    int at, row, channel;  // offset, and strides in floats
};

// The smallest row stride that puts the rows which the lanes of a warp read at once into different banks: every row of
// the plane, or every second one where it is read by a convolution of stride 2.
FASTMALADE_BOTH constexpr int row_stride(int width, int images, bool by_two) {
    int stride = width * images;
    const int period = by_two ? 16 : 32, wanted = by_two ? (images + 1) / 2 : images;
    while (stride % period != wanted % period && stride % period != (period - wanted % period) % period) ++stride;
    return stride;
}

// Where state and activations lie in the shared memory of a block, in floats. Resident weights come before them.
struct Planes {
    Plane state, hidden1, hidden2;
    Plane upsampled;  // deconv1's output, where it is kept
    Plane even;       // deconv2's output at even pixels; all others are constants
    Plane cotangent;
    int floats;  // of everything, weights included
};

// weight_floats: of the resident weights, 0 for none.
template <class Form, class Shape>
FASTMALADE_BOTH constexpr Planes make_planes(const Shape& s, int images, int weight_floats) {
    Planes planes{};
    int n = round_up(weight_floats, 4);
    const int h = s.height, w = s.width;
    planes.state = Plane{n, row_stride(w, images, true), 0};
    planes.state.channel = h * planes.state.row, n += s.channels * planes.state.channel;
    planes.hidden1 = Plane{n, row_stride(w / 2, images, true), 0};
    planes.hidden1.channel = h / 2 * planes.hidden1.row;
    const int hidden1_floats = s.hidden1 * planes.hidden1.channel;
    planes.hidden2 = Plane{n, row_stride(w / 4, images, false), 0};
    planes.hidden2.channel = h / 4 * planes.hidden2.row;
    const int hidden2_floats = s.hidden2 * planes.hidden2.channel;
    if constexpr (Form::in_place) {
        n += hidden1_floats > hidden2_floats ? hidden1_floats : hidden2_floats;
    } else {
        n += hidden1_floats;
        planes.hidden2.at = n, n += hidden2_floats;
    }
    planes.upsampled = planes.hidden1;
    if constexpr (Form::keeps_upsampled) planes.upsampled.at = n, n += hidden1_floats;
    planes.even = Plane{n, w / 2 * images, h / 2 * (w / 2) * images};
    n += s.channels * planes.even.channel;
    if constexpr (Form::has_cotangent) {
        planes.cotangent = Plane{n, w * images, h * w * images};
        n += s.channels * h * w * images;
    }
    planes.floats = n;
    return planes;
}

}  // namespace fastmalade::cuda
