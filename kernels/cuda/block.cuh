// How a block, or a cluster of blocks, shares the work on one group of images: who computes which tile, and where a
// result is stored.
#pragma once

#include "cuda/convolution.cuh"
#include "cuda/forms.cuh"

namespace fastmalade::cuda {

// One block computes a group by itself.
struct BlockPeers {
    FASTMALADE_DEVICE int rank() const { return 0; }
    FASTMALADE_DEVICE int size() const { return 1; }
    FASTMALADE_DEVICE void put(float* place, float value) const { *place = value; }
    template <int STAGE>
    FASTMALADE_DEVICE void sync() const {
        block_barrier<STAGE>();
    }
};

// A cluster computes a group: its blocks share out the tiles of every layer, and store each result in the shared memory
// of all of them. Each block then has whole planes, and reads are the same as when a block works by itself.
struct ClusterPeers {
    FASTMALADE_DEVICE int rank() const { return cluster_rank(); }
    FASTMALADE_DEVICE int size() const { return cluster_size(); }
    FASTMALADE_DEVICE void put(float* place, float value) const {
        const int size = cluster_size();
        for (int rank = 0; rank < size; ++rank) store_at_rank(place, rank, value);
    }
    template <int STAGE>
    FASTMALADE_DEVICE void sync() const {
#if defined(FASTMALADE_EMULATION)
        if (emulation::omitted_barrier == STAGE) return;
#endif
        cluster_barrier();
    }
};

// A block at work on one group of images. Form: forms.cuh.
template <class Form>
struct Block {
    typename Form::Shape s;
    PackedLayout at;
    Planes planes;
    const float* weights;  // packed
    float* memory;         // of this block; `planes` says what lies where
    int images;
    typename Form::Peers peers;

    FASTMALADE_DEVICE float* place(const Plane& plane, int c, int y, int x, int image) const {
        return memory + plane.at + c * plane.channel + y * plane.row + x * images + image;
    }
    FASTMALADE_DEVICE Source source(const Plane& plane, int channels, int height, int width, int image) const {
        Source in;
        in.data = memory + plane.at + image;
        in.row = plane.row, in.channel = plane.channel;
        in.channels = channels, in.height = height, in.width = width, in.images = images;
        return in;
    }
    FASTMALADE_DEVICE int first() const { return peers.rank() * blockDim.x + threadIdx.x; }
    FASTMALADE_DEVICE int step() const { return peers.size() * blockDim.x; }
};

// The tiles of one layer: tasks x segments of a row x rows x images, in this order, the last the fastest.
struct Tiling {
    int tasks, segments, rows, images;
    int per_segment, count;
    FASTMALADE_DEVICE Tiling(int tasks, int segments, int rows, int images, bool uniform)
        : tasks(tasks),
          segments(segments),
          rows(rows),
          images(images),
          per_segment(uniform ? round_up(rows * images, kWarp) : rows * images),
          count(tasks * segments * per_segment) {}
};

struct Tile {
    int task, segment, row, image;
    bool exists;
    FASTMALADE_DEVICE Tile(const Tiling& t, int n) {
        const int in_segment = n % t.per_segment, segments = n / t.per_segment;
        segment = segments % t.segments, task = segments / t.segments;
        row = in_segment / t.images, image = in_segment % t.images;
        exists = n < t.count && row < t.rows;
    }
};

template <int P, int OC, class Store>
FASTMALADE_DEVICE void store_tile(const float (&sum)[P][OC], int first_channel, int channels, int first_column,
                                  int columns, const Store& store) {
    FASTMALADE_UNROLL
    for (int o = 0; o < OC; ++o) {
        if (first_channel + o >= channels) continue;
        FASTMALADE_UNROLL
        for (int p = 0; p < P; ++p) {
            if (first_column + p < columns) store(first_channel + o, first_column + p, sum[p][o]);
        }
    }
}

// A layer of stride 2 with K x K taps, from `plane` (channels, height, width) to (out_channels, height / 2, width / 2).
// weights, bias: offsets in the packed model, bias -1 for none. store(channel, row, column, image, sum).
template <int K, int LEFT, int OC, int WIDTH, bool IN_PLACE, class Form, class Store>
FASTMALADE_DEVICE void convolve_layer(const Block<Form>& b, const Plane& plane, int channels, int height, int width,
                                      int weights, int bias, int out_channels, const Store& store) {
    constexpr int P = Form::Tiles::positions;
    const int rows = height / 2, columns = width / 2;
    const Tiling tiling(divide_up(out_channels, OC), divide_up(columns, P), rows, b.images, Form::uniform);
    const int block_floats = packed_block(channels, K, K, OC);
    const auto compute = [&](const Tile& tile, float (&sum)[P][OC]) {
        convolve<K, LEFT, P, OC, WIDTH>(sum, b.source(plane, channels, height, width, tile.image),
                                        b.weights + weights + tile.task * block_floats,
                                        bias < 0 ? nullptr : b.weights + bias + tile.task * OC, tile.row, tile.segment);
    };
    const auto keep = [&](const Tile& tile, const float (&sum)[P][OC]) {
        store_tile(sum, tile.task * OC, out_channels, tile.segment * P, columns,
                   [&](int o, int x, float value) { store(o, tile.row, x, tile.image, value); });
    };
    if constexpr (IN_PLACE) {
        const Tile tile(tiling, b.first());
        float sum[P][OC];
        if (tile.exists) compute(tile, sum);
        block_barrier<10>();
        if (tile.exists) keep(tile, sum);
    } else {
        for (int n = b.first(); n < tiling.count; n += b.step()) {
            const Tile tile(tiling, n);
            if (!tile.exists) continue;
            float sum[P][OC];
            compute(tile, sum);
            keep(tile, sum);
        }
    }
}

// Phases in the order in which four pairs of warps with 25, 20, 16 and 20 taps load the four schedulers of an SM
// evenly.
FASTMALADE_DEVICE int phase_of_slot(int slot) { return slot ^ (slot >> 1); }

// By comparisons: an array indexed at run time would have to lie in memory.
FASTMALADE_DEVICE int of_phase(const int (&offsets)[4], int phase) {
    return phase == 0 ? offsets[0] : phase == 1 ? offsets[1] : phase == 2 ? offsets[2] : offsets[3];
}

// A transposed layer of stride 2 with K x K taps, from `plane` (channels, height, width) to (out_channels, 2 height,
// 2 width). weights: offsets in the packed model by phase.
template <int K, int LEFT, int OC, int WIDTH, class Form, class Store>
FASTMALADE_DEVICE void upsample_layer(const Block<Form>& b, const Plane& plane, int channels, int height, int width,
                                      const int (&weights)[4], int bias, int out_channels, const Store& store) {
    constexpr int P = Form::Tiles::positions;
    const int blocks = divide_up(out_channels, OC);
    const Tiling tiling(4 * blocks, divide_up(width, P), height, b.images, Form::uniform);
    for (int n = b.first(); n < tiling.count; n += b.step()) {
        const Tile tile(tiling, n);
        if (!tile.exists) continue;
        const int phase = phase_of_slot(tile.task / blocks), block = tile.task % blocks;
        const int block_floats = packed_block(channels, K - phase / 2, K - phase % 2, OC);
        float sum[P][OC];
        upsample<K, LEFT, P, OC, WIDTH>(sum, b.source(plane, channels, height, width, tile.image),
                                        b.weights + of_phase(weights, phase) + block * block_floats,
                                        bias < 0 ? nullptr : b.weights + bias + block * OC, phase, tile.row,
                                        tile.segment);
        store_tile(sum, block * OC, out_channels, tile.segment * P, width, [&](int o, int q, float value) {
            store(o, 2 * tile.row + phase / 2, 2 * q + phase % 2, tile.image, value);
        });
    }
}

}  // namespace fastmalade::cuda
