// Shapes, tiles and memory plans of the whole-chain kernels.
//
// Every convolution is cut into tiles of P neighbouring positions of one row times OC output channels; one thread sums
// one tile in registers. Tiles of any size add in the same order (convolution.cuh), so forms that differ only in their
// tiles give the same bits.
#pragma once

#include "cuda/platform.cuh"

namespace fastmalade::cuda {

// Sizes known when the kernel is compiled: loops unroll, and taps outside the image cost nothing.
template <int C, int H, int W, int H1, int H2>
struct FixedShape {
    static constexpr bool is_fixed = true;
    static constexpr int channels = C, height = H, width = W, hidden1 = H1, hidden2 = H2;
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

// Positions and output channels of a tile, forward (conv1, conv2, deconv1) and of the vector-Jacobian products (_back).
template <int P_, int CONV1, int CONV2, int DECONV1, int DECONV1_BACK, int CONV2_BACK>
struct TileSizes {
    static constexpr int P = P_, conv1 = CONV1, conv2 = CONV2, deconv1 = DECONV1;
    static constexpr int deconv1_back = DECONV1_BACK, conv2_back = CONV2_BACK;
};

// Whole rows of seven on the quarter grid of a 28x28 image. 70 sums a thread leave a multiply-add about five times for
// every word that is read from shared memory; deconv1 with all ten channels in one thread ends in the 1x1 layer
// without storing them. Seven channels of conv2 make its 25 four tasks, as many as the warps can share evenly.
using RowTiles = TileSizes<7, 10, 7, 10, 7, 10>;
// Any shape.
using GeneralTiles = TileSizes<4, 5, 5, 5, 5, 5>;
// As many threads as there can be for one image.
using SmallTiles = TileSizes<2, 1, 1, 1, 1, 1>;

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

// One array [channel][row][column][image of the group] in shared memory; neighbouring lanes hold neighbouring images.
struct Plane {
    int at, row, channel;  // offset, and strides in floats
};

// Strides by which the rows that the lanes of a warp read at once fall into different banks: every row of the plane, or
// every second one where it is read by a convolution of stride 2.
FASTMALADE_BOTH constexpr int row_stride(int width, int images, bool by_two) {
    int stride = width * images;
    const int period = by_two ? 16 : 32, wanted = by_two ? (images + 1) / 2 : images;
    while (stride % period != wanted % period && stride % period != (period - wanted % period) % period) ++stride;
    return stride;
}

// Shared memory of a block in floats. `weights` come first.
struct Plan {
    Plane state, hidden1, hidden2;
    Plane upsampled;  // deconv1's output, where it is kept
    Plane even;       // deconv2's output at even pixels: all others are constants
    Plane cotangent;
    int floats;
};

// IN_PLACE: conv2 overwrites its own input. GRADIENT: what a vector-Jacobian product needs too.
template <class Shape>
FASTMALADE_BOTH constexpr Plan make_plan(const Shape& s, int images, int weight_floats, bool in_place,
                                         bool keeps_upsampled, bool gradient) {
    Plan plan{};
    int n = round_up(weight_floats, 4);
    const int h = s.height, w = s.width;
    plan.state = Plane{n, row_stride(w, images, true), 0};
    plan.state.channel = h * plan.state.row, n += s.channels * plan.state.channel;
    plan.hidden1 = Plane{n, row_stride(w / 2, images, true), 0};
    plan.hidden1.channel = h / 2 * plan.hidden1.row;
    const int hidden1_floats = s.hidden1 * plan.hidden1.channel;
    plan.hidden2 = Plane{n, row_stride(w / 4, images, false), 0};
    plan.hidden2.channel = h / 4 * plan.hidden2.row;
    const int hidden2_floats = s.hidden2 * plan.hidden2.channel;
    if (in_place) {
        n += hidden1_floats > hidden2_floats ? hidden1_floats : hidden2_floats;
    } else {
        n += hidden1_floats;
        plan.hidden2.at = n, n += hidden2_floats;
    }
    plan.upsampled = plan.hidden1;
    if (keeps_upsampled || gradient) plan.upsampled.at = n, n += hidden1_floats;
    plan.even = Plane{n, w / 2 * images, h / 2 * (w / 2) * images};
    n += s.channels * plan.even.channel;
    if (gradient) plan.cotangent = Plane{n, w * images, h * w * images}, n += s.channels * h * w * images;
    plan.floats = n;
    return plan;
}

}  // namespace fastmalade::cuda
