// The forms of the autoencoder's convolutions: what lies in the lanes of a vector.
//
// Throughput: one image in each lane. A pixel of an activation is one vector, a weight is one broadcast float.
//
// Latency: kLanes output channels of one image. A weight is one vector, an activation one broadcast.
//
// Quad: kLanes / 4 output channels of four images. It serves batches that would leave most lanes of the throughput form
// empty, and that the latency form would read every weight for once per image.
//
// All run the same tile code (cpu/isa/convolution.h), so every output adds the same products in the same order,
// whatever the form, the batch or the position in it: bias first, then input channel, ky, kx ascending, in-range taps
// only.
#pragma once

#include "common/layout.h"
#include "cpu/isa/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Output channels are cut into blocks of at most kMaxUnits accumulators, of sizes that differ by one at most.
constexpr int kMaxUnits = 5;

constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// Lane i * unit + c of a vector holds channel c of a unit in image i. What a layer writes lies as
// [unit][row][column][kLanes].
template <int IMAGES>
struct Group {
    static constexpr int images = IMAGES;
    static constexpr int unit = kLanes / IMAGES;  // output channels of one accumulator
    static constexpr int pixel = kLanes;          // floats of one pixel of one unit
    // Whether the layers after deconv1 work on images that lie one after the other, instead of one in each lane.
    static constexpr bool planar = unit > 1;
    static constexpr int largest_block(int units) { return divide_up(units, divide_up(units, kMaxUnits)); }
    static constexpr int typical_units[2] = {largest_block(divide_up(10, unit)), largest_block(divide_up(25, unit))};

    // The weights of a unit, the same in every image. p: (unit,)
    FASTMALADE_INLINE Vec weight(const float* p) {
        if constexpr (unit == 1) {
            return broadcast(*p);
        } else if constexpr (unit == kLanes) {
            return load(p);
        } else {
            return repeat<unit>(p);
        }
    }
    // One input channel, the same in every output channel. p: that channel in image 0
    FASTMALADE_INLINE Vec activation(const float* p) {
        if constexpr (unit == 1) {
            return load(p);
        } else if constexpr (unit == kLanes) {
            return broadcast(*p);
        } else {
            return first_of_each<unit>(load(p));
        }
    }
    // From channel 0 to channel c, where `stride` lies between units.
    FASTMALADE_INLINE int64_t channel(int64_t c, int64_t stride) { return c / unit * stride + c % unit; }
};

typedef Group<kLanes> Throughput;
typedef Group<1> Latency;
typedef Group<4> Quad;

// Planar forms read the image as it lies, one float a pixel, or with every image's pixels already in its lanes.
template <class Form>
struct FromImage : Form {
    static constexpr int pixel = Form::images == 1 ? 1 : kLanes;
    FASTMALADE_INLINE Vec activation(const float* p) {
        if constexpr (Form::images == 1) {
            return broadcast(*p);
        } else {
            return load(p);
        }
    }
    FASTMALADE_INLINE int64_t channel(int64_t c, int64_t stride) { return c * stride; }
};

// Vectors that hold `channels` channels of one pixel.
template <class Form>
inline int64_t vectors_of(int64_t channels) {
    return (channels + Form::unit - 1) / Form::unit;
}

template <class Form>
struct Blocks {
    int64_t units, count;
    explicit Blocks(int64_t channels)
        : units((channels + Form::unit - 1) / Form::unit), count((units + kMaxUnits - 1) / kMaxUnits) {}
    int64_t first(int64_t block) const { return block * (units / count) + least(block, units % count); }
    int64_t size(int64_t block) const { return first(block + 1) - first(block); }
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// Positions of one output row that share a tile: as many as the registers take beside one weight and the activations,
// and no more than four where that already gives the eight independent sums that hide an FMA's latency.
constexpr int max_positions(int units) {
    return kRegisters == 32 ? (units == 1 ? 7 : 4) : (units <= 2 ? 4 : units == 3 ? 3 : 2);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
