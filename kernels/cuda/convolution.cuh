// The two kinds of convolution that all layers and all vector-Jacobian products are made of.
//
//   convolve   stride 2:             out[p] = sum over k < K of w[k] in[2 p + k - LEFT]
//   upsample   transposed, stride 2: out[2 q + b] = sum over k < K - b of w_b[k] in[q + k - (LEFT - b)], b = 0, 1
//
// One thread sums P positions of a row times OC output channels. For an input channel and a row of taps it reads the
// row's activations once and the taps' weights once: the lanes of a warp hold other images and other rows of the same
// tile, so a weight is one broadcast, 16 bytes at a time. Every sum starts from its bias and adds one fused
// multiply-add per tap that reads inside the image, by ascending input channel, row and column. Taps that fall outside
// are skipped, not multiplied by zero: the sign of a zero, and a weight that is not finite, come out the same in every
// form.
#pragma once

#include "cuda/shapes.cuh"

namespace fastmalade::cuda {

// Which of the columns first, first+1, ... that a tile reads lie inside the image: known to the compiler, or as bits.
template <int FIRST, int WIDTH>
struct FixedColumns {
    static FASTMALADE_DEVICE constexpr bool inside(int n) { return FIRST + n >= 0 && FIRST + n < WIDTH; }
};

struct MaskedColumns {
    uint32_t mask;
    FASTMALADE_DEVICE MaskedColumns(int first, int count, int width) : mask(0) {
        for (int n = 0; n < count; ++n) mask |= (uint32_t)(first + n >= 0 && first + n < width) << n;
    }
    FASTMALADE_DEVICE bool inside(int n) const { return mask >> n & 1; }
};

// What a convolution reads.
struct Source {
    const float* data;  // [channels][height][width][images], at the image of this thread
    int row, channel;   // strides in floats
    int channels, height, width, images;
};

// weights: [in channel][ky][kx][OC] of the tile's block. first_row, first_column: of the input, for tap 0 and position
// 0.
template <int STRIDE, int KX, int P, int OC, class Columns>
FASTMALADE_DEVICE void add_taps(float (&sum)[P][OC], const Source& in, const float* weights, int rows, int first_row,
                                int first_column, const Columns& columns) {
    constexpr int COUNT = (P - 1) * STRIDE + KX, ROW = packed_row(KX, OC);
    FASTMALADE_NO_UNROLL
    for (int i = 0; i < in.channels; ++i) {
        const float* channel = in.data + i * in.channel;
        FASTMALADE_NO_UNROLL
        for (int ky = 0; ky < rows; ++ky, weights += ROW) {
            const int row = first_row + ky;
            // Lanes hold different rows; those whose row lies outside wait for the others.
            if (row < 0 || row >= in.height) continue;
            float w[ROW], a[COUNT];
            FASTMALADE_UNROLL
            for (int n = 0; n < ROW; n += 4) {
                const float4 four = *reinterpret_cast<const float4*>(weights + n);
                w[n] = four.x, w[n + 1] = four.y, w[n + 2] = four.z, w[n + 3] = four.w;
            }
            const int at = row * in.row + first_column * in.images;
            FASTMALADE_UNROLL
            for (int n = 0; n < COUNT; ++n) {
                if (columns.inside(n)) a[n] = channel[at + n * in.images];
            }
            FASTMALADE_UNROLL
            for (int kx = 0; kx < KX; ++kx) {
                FASTMALADE_UNROLL
                for (int p = 0; p < P; ++p) {
                    if (!columns.inside(p * STRIDE + kx)) continue;
                    FASTMALADE_UNROLL
                    for (int o = 0; o < OC; ++o) sum[p][o] = fmaf(w[kx * OC + o], a[p * STRIDE + kx], sum[p][o]);
                }
            }
        }
    }
}

// The same with the columns known to the compiler where the width is (WIDTH > 0). The few segments of a row are then as
// many copies of the loop, each without a test.
template <int STRIDE, int KX, int LEFT, int P, int OC, int WIDTH, int SEGMENT = 0>
FASTMALADE_DEVICE void add_segment(float (&sum)[P][OC], const Source& in, const float* weights, int rows, int first_row,
                                   int segment) {
    constexpr int COUNT = (P - 1) * STRIDE + KX;
    if constexpr (WIDTH > 0) {
        constexpr int FIRST = SEGMENT * P * STRIDE - LEFT;
        if (segment == SEGMENT) {
            add_taps<STRIDE, KX>(sum, in, weights, rows, first_row, FIRST, FixedColumns<FIRST, WIDTH>());
        } else if constexpr ((SEGMENT + 1) * P * STRIDE < WIDTH) {
            add_segment<STRIDE, KX, LEFT, P, OC, WIDTH, SEGMENT + 1>(sum, in, weights, rows, first_row, segment);
        }
    } else {
        const int first = segment * P * STRIDE - LEFT;
        add_taps<STRIDE, KX>(sum, in, weights, rows, first_row, first, MaskedColumns(first, COUNT, in.width));
    }
}

template <int P, int OC>
FASTMALADE_DEVICE void start_from(float (&sum)[P][OC], const float* bias) {
    FASTMALADE_UNROLL
    for (int o = 0; o < OC; ++o) {
        FASTMALADE_UNROLL
        for (int p = 0; p < P; ++p) sum[p][o] = bias ? bias[o] : 0.0f;
    }
}

// Tile of `convolve`: positions segment P .. segment P + P-1 of output row `row`, K x K taps.
// weights: of the tile's block. bias: (OC,) or null.
template <int K, int LEFT, int P, int OC, int WIDTH>
FASTMALADE_DEVICE void convolve(float (&sum)[P][OC], const Source& in, const float* weights, const float* bias, int row,
                                int segment) {
    start_from(sum, bias);
    add_segment<2, K, LEFT, P, OC, WIDTH>(sum, in, weights, K, 2 * row - LEFT, segment);
}

// Tile of `upsample`: output row 2 row + phase / 2, columns 2 q + phase % 2 for q = segment P .. segment P + P-1.
// weights: of the phase and of the tile's block.
template <int K, int LEFT, int P, int OC, int WIDTH>
FASTMALADE_DEVICE void upsample(float (&sum)[P][OC], const Source& in, const float* weights, const float* bias,
                                int phase, int row, int segment) {
    start_from(sum, bias);
    const int odd_row = phase / 2, rows = K - odd_row, first_row = row - (LEFT - odd_row);
    if (phase % 2 == 0) {
        add_segment<1, K, LEFT, P, OC, WIDTH>(sum, in, weights, rows, first_row, segment);
    } else {
        add_segment<1, K - 1, LEFT - 1, P, OC, WIDTH>(sum, in, weights, rows, first_row, segment);
    }
}

}  // namespace fastmalade::cuda
