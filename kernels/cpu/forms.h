// The two forms of the autoencoder's convolutions.
//
// Throughput: one image in each lane. A pixel of an activation is one vector, a weight is one broadcast float.
// Latency:    one image, and a vector holds LANES output channels. A weight is one vector, an activation one broadcast.
// Both run the same tile code (cpu/convolution.h), so every output adds the same products in the same order whatever
// the form, the batch or the position in it: bias first, then input channel, ky, kx ascending, in-range taps only.
#pragma once

#include "common/layout.h"
#include "cpu/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

struct Throughput {
    static constexpr int pixel = LANES;  // floats of one pixel of one channel
    static constexpr int unit = 1;       // output channels of one accumulator
    static constexpr int typical_units[2] = {5, 5};
    FASTMALADE_INLINE Vec weight(const float* p) { return broadcast(*p); }
    FASTMALADE_INLINE Vec activation(const float* p) { return load(p); }
    // From channel 0 to channel c, where `stride` lies between vectors.
    FASTMALADE_INLINE int64_t channel(int64_t c, int64_t stride) { return c * stride; }
};

// Blocks of accumulators that 10 and 25 output channels fall into, by Blocks below.
constexpr int latency_units(int channels) {
    return (channels + LANES - 1) / LANES > 5 ? 4 : (channels + LANES - 1) / LANES;
}

// What a layer writes as [channel vector][row][column][LANES]; one float of it is a pixel of a channel.
struct Latency {
    static constexpr int pixel = LANES;
    static constexpr int unit = LANES;
    static constexpr int typical_units[2] = {latency_units(10), latency_units(25)};
    FASTMALADE_INLINE Vec weight(const float* p) { return load(p); }
    FASTMALADE_INLINE Vec activation(const float* p) { return broadcast(*p); }
    FASTMALADE_INLINE int64_t channel(int64_t c, int64_t stride) { return c / LANES * stride + c % LANES; }
};

// The same, reading [channel][row][column]: the image itself.
struct LatencyFromImage : Latency {
    static constexpr int pixel = 1;
    FASTMALADE_INLINE int64_t channel(int64_t c, int64_t stride) { return c * stride; }
};

// The latency form's transposed layer: a plane for each phase and channel of it, [4 hidden1][height][row] floats of the
// quarter-size grid. Rows have a margin, so that whole vectors may be stored.
struct PhasePlanes {
    int64_t row, plane;
    PhasePlanes(int64_t height, int64_t width) : row(width + LANES), plane(height * row) {}
};

// Output channels are cut into blocks of at most MAX_UNITS accumulators, of sizes that differ by one at most.
constexpr int MAX_UNITS = 5;

template <class Form>
struct Blocks {
    int64_t units, count;
    explicit Blocks(int64_t channels)
        : units((channels + Form::unit - 1) / Form::unit), count((units + MAX_UNITS - 1) / MAX_UNITS) {}
    int64_t first(int64_t block) const { return block * (units / count) + least(block, units % count); }
    int64_t size(int64_t block) const { return first(block + 1) - first(block); }
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// Positions of one output row that share a tile: as many as the registers take beside one weight and the activations,
// and no more than four where that already gives the eight independent sums that hide an FMA's latency.
constexpr int max_positions(int units) {
    return REGISTERS == 32 ? (units == 1 ? 7 : 4) : (units <= 2 ? 4 : units == 3 ? 3 : 2);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
