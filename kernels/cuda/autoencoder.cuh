// The layers of the Table 8 autoencoder (paper 000) up to the even pixels of deconv2; tail.cuh has the rest.
#pragma once

#include "cuda/block.cuh"
#include "cuda/elementary.cuh"

namespace fastmalade::cuda {

template <class Form>
FASTMALADE_DEVICE void conv1(const Block<Form>& b) {
    convolve_layer<5, 2, Form::Tiles::conv1, fixed_width<typename Form::Shape>(1), false>(
        b, b.planes.state, b.s.channels, b.s.height, b.s.width, b.at.conv1, b.at.conv1_bias, b.s.hidden1,
        [&](int o, int y, int x, int image, float sum) {
            b.peers.put(b.place(b.planes.hidden1, o, y, x, image), tanh_float(sum));
        });
}

template <class Form>
FASTMALADE_DEVICE void conv2(const Block<Form>& b) {
    convolve_layer<5, 2, Form::Tiles::conv2, fixed_width<typename Form::Shape>(2), Form::in_place>(
        b, b.planes.hidden1, b.s.hidden1, b.s.height / 2, b.s.width / 2, b.at.conv2, b.at.conv2_bias, b.s.hidden2,
        [&](int o, int y, int x, int image, float sum) {
            b.peers.put(b.place(b.planes.hidden2, o, y, x, image), tanh_float(sum));
        });
}

// deconv1 into its own plane, for forms whose blocks share it and for gradients, which read it again.
template <class Form>
FASTMALADE_DEVICE void deconv1(const Block<Form>& b) {
    upsample_layer<5, 2, Form::Tiles::deconv1, fixed_width<typename Form::Shape>(4)>(
        b, b.planes.hidden2, b.s.hidden2, b.s.height / 4, b.s.width / 4, b.at.deconv1, b.at.deconv1_bias, b.s.hidden1,
        [&](int o, int y, int x, int image, float sum) {
            b.peers.put(b.place(b.planes.upsampled, o, y, x, image), tanh_float(sum));
        });
}

// deconv2 at the even pixels, from that plane.
template <class Form>
FASTMALADE_DEVICE void deconv2(const Block<Form>& b) {
    const int columns = b.s.width / 2, rows = b.s.height / 2, hidden1 = b.s.hidden1;
    for (int n = b.first(); n < b.s.channels * rows * columns * b.images; n += b.step()) {
        const int image = n % b.images, x = n / b.images % columns, y = n / b.images / columns % rows;
        const int c = n / b.images / columns / rows;
        float sum = b.weights[b.at.deconv2_bias + c];
        for (int o = 0; o < hidden1; ++o) {
            sum = fmaf(b.weights[b.at.deconv2 + c * hidden1 + o], *b.place(b.planes.upsampled, o, y, x, image), sum);
        }
        b.peers.put(b.place(b.planes.even, c, y, x, image), tanh_float(sum));
    }
}

// Both at once: a thread has all channels of its positions one block after the other, so deconv1's output need not be
// stored. Sums that go on over several blocks wait in the even plane, each touched by one thread only.
template <class Form>
FASTMALADE_DEVICE void deconv1_deconv2(const Block<Form>& b) {
    constexpr int P = Form::Tiles::positions, OC = Form::Tiles::deconv1, WIDTH = fixed_width<typename Form::Shape>(4);
    const int channels = b.s.hidden2, height = b.s.height / 4, width = b.s.width / 4;
    const int hidden1 = b.s.hidden1, blocks = divide_up(hidden1, OC);
    const Tiling tiling(4, divide_up(width, P), height, b.images, Form::uniform);
    for (int n = b.first(); n < tiling.count; n += b.step()) {
        const Tile tile(tiling, n);
        if (!tile.exists) continue;
        const int phase = phase_of_slot(tile.task), y = 2 * tile.row + phase / 2;
        const int block_floats = packed_block(channels, 5 - phase / 2, 5 - phase % 2, OC);
        for (int block = 0; block < blocks; ++block) {
            float sum[P][OC];
            upsample<5, 2, P, OC, WIDTH>(sum, b.source(b.planes.hidden2, channels, height, width, tile.image),
                                         b.weights + of_phase(b.at.deconv1, phase) + block * block_floats,
                                         b.weights + b.at.deconv1_bias + block * OC, phase, tile.row, tile.segment);
            FASTMALADE_UNROLL
            for (int p = 0; p < P; ++p) {
                FASTMALADE_UNROLL
                for (int o = 0; o < OC; ++o) sum[p][o] = tanh_float(sum[p][o]);
            }
            for (int c = 0; c < b.s.channels; ++c) {
                const float* weights = b.weights + b.at.deconv2 + c * hidden1 + block * OC;
                FASTMALADE_UNROLL
                for (int p = 0; p < P; ++p) {
                    const int q = tile.segment * P + p;
                    if (q >= width) continue;
                    float* place = b.place(b.planes.even, c, y, 2 * q + phase % 2, tile.image);
                    float even = block == 0 ? b.weights[b.at.deconv2_bias + c] : *place;
                    FASTMALADE_UNROLL
                    for (int o = 0; o < OC; ++o) {
                        if (block * OC + o < hidden1) even = fmaf(weights[o], sum[p][o], even);
                    }
                    *place = block == blocks - 1 ? tanh_float(even) : even;
                }
            }
        }
    }
}

// From the state to the even pixels; ends with a barrier.
template <class Form>
FASTMALADE_DEVICE void encode_decode(const Block<Form>& b) {
    conv1(b);
    b.peers.template sync<1>();
    conv2(b);
    b.peers.template sync<2>();
    if constexpr (Form::keeps_upsampled) {
        deconv1(b);
        b.peers.template sync<3>();
        deconv2(b);
    } else {
        deconv1_deconv2(b);
    }
    b.peers.template sync<4>();
}

}  // namespace fastmalade::cuda
