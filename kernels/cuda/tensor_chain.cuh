// The whole chain with conv2 and deconv1 on tensor cores, for the shape of the form Digits: eight images a block.
//
// The rest stays in float32 multiply-adds: conv1 has one input channel, and loading its operands would cost as many
// instructions as its sums (docs/performance.md); deconv2, conv3, tanh, update and noise are those of the other forms.
// A sum starts from its bias and adds its blocks of K in one order, by tap inside eight channels and then the remaining
// channels, and no image reads another's values: batch, block and place in the batch change no bit.
#pragma once

#include "cuda/langevin_chain.cuh"
#include "cuda/packed_model.cuh"
#include "cuda/tensor_core.cuh"

namespace fastmalade::cuda {

template <Precision PRECISION, bool RESIDENT>
struct TensorForm : Digits<kTensorImages> {
    static constexpr Precision precision = PRECISION;
    static constexpr bool resident = RESIDENT;
};

// A lane of a warp and what it holds of a product.
struct Lane {
    int warp, group, within;  // group: row of C and of A, column of B; within: column pair of C, column of A, row of B
    FASTMALADE_DEVICE Lane()
        : warp(same_in_warp(threadIdx.x / kWarp)), group(threadIdx.x % kWarp / 4), within(threadIdx.x % 4) {}
};

// Rows of a layer go to warps starting with the second row. A scheduler of a multiprocessor has every fourth warp, so
// of the seven rows of a digit it gets one with all taps inside and one with few.
FASTMALADE_DEVICE int row_of_slot(int slot, int rows) { return (slot + 1) % rows; }

// Fragments of one block of K. weights: of that block.
template <int ROWS, Precision PRECISION, int TILES>
FASTMALADE_DEVICE void load_fragments(Operand<PRECISION> (&a)[TILES][4], const float* weights) {
    const int lane = threadIdx.x % kWarp;
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        if ((m + 1) * 16 <= ROWS) {
            const float4 w = *reinterpret_cast<const float4*>(weights + m * 128 + lane * 4);
            a[m][0] = operand<PRECISION>(w.x), a[m][1] = operand<PRECISION>(w.y);
            a[m][2] = operand<PRECISION>(w.z), a[m][3] = operand<PRECISION>(w.w);
        } else {
            const float2 w = *reinterpret_cast<const float2*>(weights + m * 128 + lane * 2);
            // Half a block: rows 8 to 15 repeat rows 0 to 7, and their sums are not used.
            a[m][0] = a[m][1] = operand<PRECISION>(w.x), a[m][2] = a[m][3] = operand<PRECISION>(w.y);
        }
    }
}

// Adds all taps of P neighbouring positions of row y, from FIRST on: sum[position][16 rows of M]. plane: the layer's
// input, CHANNELS x HEIGHT x WIDTH, of which row STRIDE y + tap - 2 is read. weights: the layer's fragments.
template <int STRIDE, int ROWS, int CHANNELS, int HEIGHT, int WIDTH, int FIRST, class Form, int P, int TILES>
FASTMALADE_DEVICE void add_row(float (&sum)[P][TILES][4], const Block<Form>& b, const Plane& plane,
                               const float* weights, int y) {
    constexpr Precision PRECISION = Form::precision;
    constexpr int POSITIONS = WIDTH / STRIDE;
    static_assert(WIDTH % STRIDE == 0 && kReach % STRIDE == 0 && FIRST + P <= POSITIONS, "positions of one row");
    const Lane lane;
    const float* data = b.memory + plane.at + lane.group;
    Operand<PRECISION> a[TILES][4];
    // Taps whose row lies inside the image.
    const int above = kReach - STRIDE * y, below = HEIGHT + above;
    const int first = above > 0 ? above : 0, last = below < 5 ? below : 5;
    FASTMALADE_NO_UNROLL
    for (int group = 0; group < whole_groups(CHANNELS); ++group) {
        const float* channel = data + (group * kDepth + lane.within) * plane.channel;
        FASTMALADE_NO_UNROLL
        for (int ky = first; ky < last; ++ky) {
            const int row = STRIDE * y + ky - kReach;
            // A column is read once for all taps of the row. With stride 2 even taps read even columns, odd ones odd.
            FASTMALADE_NO_UNROLL
            for (int parity = 0; parity < STRIDE; ++parity) {
                Operand<PRECISION> in[POSITIONS][2];
                FASTMALADE_UNROLL
                for (int n = 0; n < POSITIONS; ++n) {
                    const float* at = channel + row * plane.row + (STRIDE * n + parity) * kTensorImages;
                    in[n][0] = operand<PRECISION>(at[0]), in[n][1] = operand<PRECISION>(at[4 * plane.channel]);
                }
                FASTMALADE_UNROLL
                for (int j = 0; j < divide_up(5, STRIDE); ++j) {
                    const int kx = STRIDE * j + parity;
                    if (kx >= 5) continue;
                    load_fragments<ROWS>(a, weights + ((group * 5 + ky) * 5 + kx) * ROWS * kDepth);
                    if (PRECISION == Precision::tf32x3 || j == 2) hold_loads();
                    multiply_row(sum, a, in, FIRST + j - kReach / STRIDE);
                }
            }
        }
    }
    FASTMALADE_NO_UNROLL
    for (int block = 0; block < loose_blocks(CHANNELS); ++block) {
        Operand<PRECISION> in[P][2];
        FASTMALADE_UNROLL
        for (int half = 0; half < 2; ++half) {
            const int n = block * kDepth + half * 4 + lane.within, tap = n % kTaps;
            const int channel = whole_groups(CHANNELS) * kDepth + n / kTaps;
            const int row = STRIDE * y + tap / 5 - kReach, left = tap % 5 - kReach;
            const bool inside = channel < CHANNELS && row >= 0 && row < HEIGHT;
            const float* at = data + channel * plane.channel + row * plane.row;
            FASTMALADE_UNROLL
            for (int p = 0; p < P; ++p) {
                const int x = STRIDE * (FIRST + p) + left;
                const bool exists = inside && x >= 0 && x < WIDTH;
                in[p][half] = operand<PRECISION>(exists ? at[x * kTensorImages] : 0.0f);
            }
        }
        load_fragments<ROWS>(a, weights + (whole_groups(CHANNELS) * kTaps + block) * ROWS * kDepth);
        multiply_row(sum, a, in, 0);
    }
}

template <class Form>
FASTMALADE_DEVICE void tensor_conv1(const Block<Form>& b) {
    convolve_layer<5, 2, Form::Tiles::conv1, fixed_width<typename Form::Shape>(1), false>(
        b, b.planes.state, b.s.channels, b.s.height, b.s.width, b.at.conv1, b.at.conv1_bias, b.s.hidden1,
        [&](int o, int y, int x, int image, float sum) {
            *b.place(b.planes.hidden1, o, y, x, image) = stored<Form::precision>(tanh_float(sum));
        });
}

// A warp computes one row of all output channels, and stores it when all warps have read what it overwrites.
template <class Form>
FASTMALADE_DEVICE void tensor_conv2(const Block<Form>& b) {
    using Shape = typename Form::Shape;
    constexpr int ROWS = conv2_rows(Shape::hidden2), TILES = divide_up(ROWS, 16);
    constexpr int P = Shape::width / 4, HEIGHT = Shape::height / 4;
    static_assert(HEIGHT <= kBlockThreads / kWarp, "conv2 in place: a row for each warp at most");
    const Lane lane;
    const bool exists = lane.warp < HEIGHT;
    const int y = row_of_slot(lane.warp, HEIGHT);
    const auto channel = [&](int m, int e) { return 16 * m + lane.group + 8 * (e / 2); };
    float sum[P][TILES][4];
    if (exists) {
        FASTMALADE_UNROLL
        for (int m = 0; m < TILES; ++m) {
            FASTMALADE_UNROLL
            for (int e = 0; e < 4; ++e) {
                const int o = channel(m, e);
                const float bias = o < Shape::hidden2 ? b.weights[b.at.conv2_bias + o] : 0.0f;
                FASTMALADE_UNROLL
                for (int p = 0; p < P; ++p) sum[p][m][e] = bias;
            }
        }
        add_row<2, ROWS, Shape::hidden1, Shape::height / 2, Shape::width / 2, 0>(sum, b, b.planes.hidden1,
                                                                                 b.weights + b.at.conv2, y);
    }
    block_barrier<10>();
    if (!exists) return;
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        FASTMALADE_UNROLL
        for (int e = 0; e < 4; ++e) {
            const int o = channel(m, e);
            if (o >= Shape::hidden2) continue;
            FASTMALADE_UNROLL
            for (int p = 0; p < P; ++p) {
                *b.place(b.planes.hidden2, o, y, p, 2 * lane.within + e % 2) =
                    stored<Form::precision>(tanh_float(sum[p][m][e]));
            }
        }
    }
}

// deconv1 of P positions of row y, and deconv2 at the even pixels of their phases. At the end a lane has half of the
// channels of one phase at every position, of two images; the lane four away has the other half.
template <int FIRST, int P, class Form>
FASTMALADE_DEVICE void tensor_upsample(const Block<Form>& b, int y) {
    using Shape = typename Form::Shape;
    constexpr int ROWS = deconv1_rows(Shape::hidden1), TILES = divide_up(ROWS, 16), EACH = ROWS / 8;
    const Lane lane;
    const int phase = lane.group / 2, half = lane.group % 2, image = 2 * lane.within + half;
    float sum[P][TILES][4];
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        FASTMALADE_UNROLL
        for (int e = 0; e < 4; ++e) {
            const int j = 2 * m + e / 2, o = half * EACH + j;
            const bool exists = j < EACH && o < Shape::hidden1;
            const float bias = exists ? b.weights[b.at.deconv1_bias + o] : 0.0f;
            FASTMALADE_UNROLL
            for (int p = 0; p < P; ++p) sum[p][m][e] = bias;
        }
    }
    add_row<1, ROWS, Shape::hidden2, Shape::height / 4, Shape::width / 4, FIRST>(sum, b, b.planes.hidden2,
                                                                                 b.weights + b.at.deconv1[0], y);
    FASTMALADE_UNROLL
    for (int p = 0; p < P; ++p) {
        FASTMALADE_UNROLL
        for (int j = 0; j < EACH; ++j) {
            FASTMALADE_UNROLL
            for (int e = 0; e < 2; ++e) {
                float& value = sum[p][j / 2][j % 2 * 2 + e];
                value = tanh_float(value);
            }
        }
        for (int c = 0; c < Shape::channels; ++c) {
            float part[2] = {0.0f, 0.0f};
            FASTMALADE_UNROLL
            for (int j = 0; j < EACH; ++j) {
                const int o = half * EACH + j;
                if (o >= Shape::hidden1) continue;
                const float weight = b.weights[b.at.deconv2 + c * Shape::hidden1 + o];
                FASTMALADE_UNROLL
                for (int e = 0; e < 2; ++e) part[e] = fmaf(weight, sum[p][j / 2][j % 2 * 2 + e], part[e]);
            }
            // Each of the two finishes one image. A sum of two numbers does not depend on their order.
            const float own = half ? part[1] : part[0], other = half ? part[0] : part[1];
            const float all = own + shuffle_xor(other, 4);
            *b.place(b.planes.even, c, 2 * y + phase / 2, 2 * (FIRST + p) + phase % 2, image) =
                tanh_float(b.weights[b.at.deconv2_bias + c] + all);
        }
    }
}

// Segment SEGMENT of SEGMENTS of a row, as even as they can be.
template <int SEGMENTS, int SEGMENT, class Form>
FASTMALADE_DEVICE void tensor_segment(const Block<Form>& b, int y, int segment) {
    if (segment == SEGMENT) {
        constexpr int POSITIONS = Form::Shape::width / 4;
        constexpr int FIRST = SEGMENT * POSITIONS / SEGMENTS, END = (SEGMENT + 1) * POSITIONS / SEGMENTS;
        tensor_upsample<FIRST, END - FIRST>(b, y);
    } else if constexpr (SEGMENT + 1 < SEGMENTS) {
        tensor_segment<SEGMENTS, SEGMENT + 1>(b, y, segment);
    }
}

// A warp takes whole rows, or, where operands are two numbers, parts of rows that fit its registers. Weights that come
// through the caches need some registers too, so the parts are smaller then.
template <class Form>
FASTMALADE_DEVICE void tensor_deconv1_deconv2(const Block<Form>& b) {
    constexpr int PARTS = Form::resident ? 3 : 4;
    constexpr int HEIGHT = Form::Shape::height / 4, SEGMENTS = Form::precision == Precision::tf32x3 ? PARTS : 1;
    for (int slot = Lane().warp; slot < SEGMENTS * HEIGHT; slot += kBlockThreads / kWarp) {
        tensor_segment<SEGMENTS, 0>(b, row_of_slot(slot, HEIGHT), slot / HEIGHT);
    }
}

// Element n of a layer's fragments. weight(row of M, in channel, ky, kx) reads the model's own, or gives 0.
template <class Weight>
FASTMALADE_DEVICE float packed_fragment(int n, int rows, int channels, Weight weight) {
    const int block = n / (rows * kDepth), in_block = n % (rows * kDepth);
    const int tile = in_block / 128, in_tile = in_block % 128;
    const int each = (tile + 1) * 16 <= rows ? 4 : 2;  // numbers of a lane: of a whole tile, or of its upper half
    const int lane = in_tile / each, e = in_tile % each;
    const int row = tile * 16 + lane / 4 + (each == 4 ? 8 * (e % 2) : 0);
    const int k = lane % 4 + 4 * (each == 4 ? e / 2 : e);
    const int whole = whole_groups(channels) * kTaps;
    int channel, tap;
    if (block < whole) {
        channel = block / kTaps * kDepth + k, tap = block % kTaps;
    } else {
        const int loose = (block - whole) * kDepth + k;
        channel = whole_groups(channels) * kDepth + loose / kTaps, tap = loose % kTaps;
    }
    return channel < channels ? weight(row, channel, tap / 5, tap % 5) : 0.0f;
}

// packed: (tensor_layout(s).floats,)
template <Precision PRECISION>
FASTMALADE_KERNEL(kBlockThreads)
pack_tensor_kernel(const AutoencoderWeights w, float* packed) {
    constexpr DigitShape s{};
    constexpr PackedLayout at = tensor_layout(s);
    const AnyShape any{s.channels, s.height, s.width, s.hidden1, s.hidden2};
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < at.floats; n += gridDim.x * blockDim.x) {
        if (n >= at.conv2 && n < at.conv2_bias) {
            const float value =
                packed_fragment(n - at.conv2, conv2_rows(s.hidden2), s.hidden1, [&](int row, int i, int ky, int kx) {
                    return row < s.hidden2 ? w.conv2_weight[((row * s.hidden1 + i) * 5 + ky) * 5 + kx] : 0.0f;
                });
            packed[n] = stored<PRECISION>(value);
        } else if (n >= at.deconv1[0] && n < at.deconv1_bias) {
            constexpr int ROWS = deconv1_rows(s.hidden1);
            const float value =
                packed_fragment(n - at.deconv1[0], ROWS, s.hidden2, [&](int row, int i, int ky, int kx) {
                    // Input offset (ky - 2, kx - 2) in a phase that starts one later: tap 9 does not exist.
                    const int phase = row % 8 / 2, o = row % 2 * (ROWS / 8) + row / 8;
                    const int y = 8 + phase / 2 - 2 * ky, x = 8 + phase % 2 - 2 * kx;
                    return o < s.hidden1 && y < 9 && x < 9 ? w.deconv1_weight[((i * s.hidden1 + o) * 9 + y) * 9 + x]
                                                           : 0.0f;
                });
            packed[n] = stored<PRECISION>(value);
        } else {
            packed[n] = packed_forward<RowTiles>(any, at, w, n);
        }
    }
}

template <class Form>
FASTMALADE_KERNEL(kBlockThreads)
tensor_chain_kernel(const FASTMALADE_GRID_CONSTANT ChainParameters p) {
    Block<Form> b{};
    b.images = kTensorImages;
    b.at = tensor_layout(b.s);
    b.planes = make_tensor_planes(b.s, Form::resident ? b.at.forward_floats : 0);
    b.memory = block_memory();
    b.weights = Form::resident ? b.memory : p.packed;
    run_chain(b, p, [&] {
        tensor_conv1(b);
        b.peers.template sync<1>();
        tensor_conv2(b);
        b.peers.template sync<2>();
        tensor_deconv1_deconv2(b);
        b.peers.template sync<4>();
    });
}

}  // namespace fastmalade::cuda
