// Standard normal noise in the layouts of the forms. The value of an element depends on (seed, sample id, step,
// element) alone (common/philox.h), so the forms agree to the bit.
#pragma once

#include "cpu/isa/elementary.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Counters first .. first+kLanes-1 of one sample.
FASTMALADE_INLINE WordVectors counters_of_sample(int64_t first, uint32_t step, uint64_t sample_id) {
    return WordVectors{{(VecWord)lane_indices() + (uint32_t)first, broadcast_word(step),
                        broadcast_word((uint32_t)sample_id), broadcast_word((uint32_t)(sample_id >> 32))}};
}

// Normal deviates take two passes: first the words of Philox for all counters of the run, stored where the deviates
// will be, then Box and Muller. Each pass is short enough for the processor to start on the next elements before one is
// done. counter_of: index of a vector of counters to its WordVectors. words: [count][4][kLanes]
template <class CounterOf>
FASTMALADE_INLINE void draw_words(int64_t count, const PhiloxKeys& keys, const CounterOf& counter_of, float* words) {
    int64_t n = 0;
    for (; n + 2 <= count; n += 2) {
        WordVectors two[2] = {counter_of(n), counter_of(n + 1)};
        philox<2>(two, keys);
        for (int j = 0; j < 8; ++j) store(words + (4 * n + j) * kLanes, from_bits((VecInt)two[j / 4].w[j % 4]));
    }
    if (n < count) {
        WordVectors one[1] = {counter_of(n)};
        philox<1>(one, keys);
        for (int j = 0; j < 4; ++j) store(words + (4 * n + j) * kLanes, from_bits((VecInt)one[0].w[j]));
    }
}

// words: [4][kLanes]
FASTMALADE_INLINE void deviates_of_words(const float* words, Vec z[4]) {
    WordVectors drawn;
    for (int j = 0; j < 4; ++j) drawn.w[j] = (VecWord)bits(load(words + j * kLanes));
    box_muller(drawn, z);
}

// Noise of one step for a group of images, one image per lane.
struct GroupNoise {
    const float* given;  // (count, pixels) of this step and group, or null: draw
    int64_t pixels, count;
    PhiloxKeys keys;
    uint32_t step;
    VecWord id_low, id_high;

    // Elements first .. first+elements-1 of every image, both multiples of 4. z: [elements][kLanes]
    inline __attribute__((always_inline)) void draw(int64_t first, int64_t elements, float* z) const {
        if (given) {
            for (int64_t n = 0; n < elements; ++n) {
                for (int l = 0; l < kLanes; ++l)
                    z[n * kLanes + l] = given[(l < count ? l : count - 1) * pixels + first + n];
            }
            return;
        }
        const auto counter_of = [&](int64_t n) __attribute__((always_inline)) {
            return WordVectors{{broadcast_word((uint32_t)(first / 4 + n)), broadcast_word(step), id_low, id_high}};
        };
        draw_words(elements / 4, keys, counter_of, z);
        for (int64_t n = 0; n < elements; n += 4) {
            Vec deviates[4];
            deviates_of_words(z + n * kLanes, deviates);
            for (int j = 0; j < 4; ++j) store(z + (n + j) * kLanes, deviates[j]);
        }
    }
};

// Elements 4 kLanes k .. 4 kLanes k + 4 kLanes - 1 of one sample in the order of memory.
FASTMALADE_INLINE void deviates_of_sample(int64_t k, uint32_t step, uint64_t sample_id, const PhiloxKeys& keys,
                                          Vec z[4]) {
    WordVectors one[1] = {counters_of_sample(k * kLanes, step, sample_id)};
    philox<1>(one, keys);
    Vec deviates[4];
    box_muller(one[0], deviates);
    interleave_four(deviates, z);
}

// z: (elements,)
void standard_normal(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t elements, float* z) {
    const PhiloxKeys keys = PhiloxKeys::of(seed);
    const int64_t whole = elements / (4 * kLanes), left = elements - whole * 4 * kLanes;
    const auto counter_of = [&](int64_t n) __attribute__((always_inline)) {
        return counters_of_sample(n * kLanes, step, sample_id);
    };
    draw_words(whole, keys, counter_of, z);
    for (int64_t k = 0; k < whole; ++k) {
        float* to = z + k * 4 * kLanes;
        Vec deviates[4], run[4];
        deviates_of_words(to, deviates);
        interleave_four(deviates, run);
        for (int j = 0; j < 4; ++j) store(to + j * kLanes, run[j]);
    }
    if (left > 0) {
        Vec run[4];
        deviates_of_sample(whole, step, sample_id, keys, run);
        for (int j = 0; j < 4 && j * kLanes < left; ++j) {
            store_some(z + whole * 4 * kLanes + j * kLanes, run[j], left - j * kLanes);
        }
    }
}

// words: (4 * counters,)
void philox_words(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t counters, int64_t* words) {
    const PhiloxKeys keys = PhiloxKeys::of(seed);
    for (int64_t first = 0; first < counters; first += kLanes) {
        WordVectors drawn[1] = {counters_of_sample(first, step, sample_id)};
        philox<1>(drawn, keys);
        for (int l = 0; l < kLanes && first + l < counters; ++l) {
            for (int j = 0; j < 4; ++j) words[4 * (first + l) + j] = drawn[0].w[j][l];
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
