// Standard normal noise in the layouts of the forms. The value of an element depends on (seed, sample id, step,
// element) alone (common/philox.h), so the forms agree to the bit.
#pragma once

#include "cpu/elementary.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// The first `count` of LANES floats, the other lanes zero.
FASTMALADE_INLINE Vec load_some(const float* p, int64_t count) {
    if (count >= LANES) return load(p);
    float lanes[LANES] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = p[l];
    return load(lanes);
}

FASTMALADE_INLINE void store_some(float* p, Vec v, int64_t count) {
    if (count >= LANES) return store(p, v);
    float lanes[LANES];
    store(lanes, v);
    for (int64_t l = 0; l < count; ++l) p[l] = lanes[l];
}

// Noise of one step for a group of images, one image per lane.
struct GroupNoise {
    const float* given;  // (count, pixels) of this step and group, or null: draw
    int64_t pixels, count;
    uint64_t seed;
    uint32_t step;
    VecWord id_low, id_high;

    // Elements element .. element+3 of every image; element is a multiple of 4.
    inline __attribute__((always_inline)) Normals at(int64_t element) const {
        if (given) {
            Normals n;
            for (int l = 0; l < LANES; ++l) {
                const float* z = given + (l < count ? l : count - 1) * pixels + element;
                for (int j = 0; j < 4; ++j) n.z[j][l] = z[j];
            }
            return n;
        }
        return normals(WordVectors{{broadcast_word((uint32_t)(element / 4)), broadcast_word(step), id_low, id_high}}, seed);
    }
};

// Counters first .. first+LANES-1 of one sample.
FASTMALADE_INLINE WordVectors counters_of_sample(int64_t first, uint32_t step, uint64_t sample_id) {
    return WordVectors{{(VecWord)lane_indices() + (uint32_t)first, broadcast_word(step),
                        broadcast_word((uint32_t)sample_id), broadcast_word((uint32_t)(sample_id >> 32))}};
}

// z: (elements,)
void standard_normal(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t elements, float* z) {
    for (int64_t first = 0; 4 * first < elements; first += LANES) {
        const Normals n = normals(counters_of_sample(first, step, sample_id), seed);
        Vec run[4];
        interleave_four(n.z, run);
        float* to = z + 4 * first;
        const int64_t left = elements - 4 * first;
        for (int j = 0; j < 4 && j * LANES < left; ++j) store_some(to + j * LANES, run[j], left - j * LANES);
    }
}

// words: (4 * counters,)
void philox_words(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t counters, int64_t* words) {
    for (int64_t first = 0; first < counters; first += LANES) {
        const WordVectors drawn = philox(counters_of_sample(first, step, sample_id), seed);
        for (int l = 0; l < LANES && first + l < counters; ++l) {
            for (int j = 0; j < 4; ++j) words[4 * (first + l) + j] = drawn.w[j][l];
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
