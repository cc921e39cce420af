// Sizes of the tensor-core form: weights in the order of mma fragments, planes without bank conflicts for them.
//
// conv2 and deconv1 are matrix products made of (M x K) times (K x N) blocks of 16x8 and 8x8. M counts output channels,
// N the eight images of a group at one position, K pairs of tap and input channel. Eight images are exactly one block
// of N, and a tap lies inside for all of them or for none: one that falls outside is skipped, and nothing is padded for
// it. deconv1's four output phases are rows of one product: they read the same 5x5 neighbourhood, and 4 x 10 rows fill
// blocks of 16 better than 10 do.
#pragma once

#include "cuda/engine.h"
#include "cuda/forms.cuh"

namespace fastmalade::cuda {

constexpr int kTensorImages = 8;
constexpr int kTaps = 25;  // 5 x 5, of a phase of deconv1 too
constexpr int kDepth = 8;  // k of one mma
constexpr int kReach = 2;  // taps to the left of and above a position

// Eight input channels are one block of K for every tap. The channels left over are numbered together with their taps
// and cut into eights: 25 channels then take 79 blocks of K where padding them to 32 would take 100.
FASTMALADE_BOTH constexpr int whole_groups(int channels) { return channels / kDepth; }
FASTMALADE_BOTH constexpr int loose_blocks(int channels) { return divide_up(channels % kDepth * kTaps, kDepth); }
FASTMALADE_BOTH constexpr int depth_blocks(int channels) {
    return whole_groups(channels) * kTaps + loose_blocks(channels);
}

// Rows of M, in eights. An odd eight is half an mma, of which only the half that is not zero is stored.
FASTMALADE_BOTH constexpr int conv2_rows(int hidden2) { return round_up(hidden2, 8); }
// Row 8 j + 2 phase + h is output channel h (rows / 8) + j: the two lanes that hold a phase's channels are neighbours,
// and the sum over channels that deconv2 takes needs one exchange between them.
FASTMALADE_BOTH constexpr int deconv1_rows(int hidden1) { return 8 * divide_up(hidden1, 2); }

FASTMALADE_BOTH constexpr int fragment_floats(int rows, int channels) { return rows * kDepth * depth_blocks(channels); }

// As PackedLayout, with conv2 and deconv1 (deconv1[0]) as fragments: [block of K][eights of rows by two][lane][4 or 2].
template <class Shape>
FASTMALADE_BOTH constexpr PackedLayout tensor_layout(const Shape& s) {
    PackedLayout at{};
    int n = 0;
    at.conv1 = n, n += divide_up(s.hidden1, RowTiles::conv1) * packed_block(s.channels, 5, 5, RowTiles::conv1);
    at.conv1_bias = n, n += round_up(round_up(s.hidden1, RowTiles::conv1), 4);
    at.conv2 = n, n += fragment_floats(conv2_rows(s.hidden2), s.hidden1);
    at.conv2_bias = n, n += round_up(s.hidden2, 4);
    at.deconv1[0] = n, n += fragment_floats(deconv1_rows(s.hidden1), s.hidden2);
    at.deconv1_bias = n, n += round_up(s.hidden1, 4);
    at.deconv2 = n, n += round_up(s.channels * s.hidden1, 4);
    at.deconv2_bias = n, n += round_up(s.channels, 4);
    at.conv3 = n, n += round_up(s.channels * s.channels * 25, 4);
    at.conv3_start = n, n += 36 * s.channels;
    at.forward_floats = at.floats = n;
    return at;
}

// A lane reads one of four neighbouring channels of one of eight images, and channels that lie 8 or 24 banks apart do
// not share a bank.
FASTMALADE_BOTH constexpr int channel_stride(int floats) {
    while (floats % 32 != 8 && floats % 32 != 24) ++floats;
    return floats;
}

// hidden2 takes hidden1's place: conv2 overwrites its input. weight_floats: of the resident weights, 0 for none.
template <class Shape>
FASTMALADE_BOTH constexpr Planes make_tensor_planes(const Shape& s, int weight_floats) {
    const int h = s.height, w = s.width, images = kTensorImages;
    Planes planes = make_planes<Digits<kTensorImages>>(s, images, weight_floats);
    int n = planes.state.at + s.channels * planes.state.channel;
    planes.hidden1 = Plane{n, w / 2 * images, channel_stride(h / 2 * (w / 2) * images)};
    planes.hidden2 = Plane{n, w / 4 * images, channel_stride(h / 4 * (w / 4) * images)};
    const int hidden1_floats = s.hidden1 * planes.hidden1.channel, hidden2_floats = s.hidden2 * planes.hidden2.channel;
    n += hidden1_floats > hidden2_floats ? hidden1_floats : hidden2_floats;
    planes.upsampled = planes.hidden1;  // not kept
    planes.even.at = n;
    planes.floats = n + s.channels * planes.even.channel;
    return planes;
}

}  // namespace fastmalade::cuda
