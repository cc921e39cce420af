// Residual, Langevin update, noise and clamp in one pass over memory, for models whose forward runs elsewhere.
#pragma once

#include "cpu/kernels.h"
#include "cpu/isa/noise.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// The same arithmetic as the last stage of the chain (cpu/isa/tail.h).
FASTMALADE_INLINE Vec updated_element(Vec x, Vec r, const UpdateArguments& u) {
    return fma(broadcast(u.step_size), r - x, x);
}

// Elements n .. n+kLanes-1 with their noise, or the `left` first of them.
template <bool NOISY>
FASTMALADE_INLINE void update_vector(const UpdateArguments& u, int64_t n, int64_t left, Vec z) {
    Vec v = updated_element(load_some(u.x + n, left), load_some(u.reconstruction + n, left), u);
    if (NOISY) v = fma(broadcast(u.noise_scale), z, v);
    store_some(u.out + n, clamped(v, u.low, u.high), left);
}

void langevin_update(const UpdateArguments& u, int64_t image, int64_t first, int64_t count) {
    const int64_t begin = image * u.elements + first;
    if (u.noise_scale == 0.0f) {
        for (int64_t n = 0; n < count; n += kLanes) update_vector<false>(u, begin + n, count - n, Vec{});
    } else if (u.noise) {
        for (int64_t n = 0; n < count; n += kLanes) {
            update_vector<true>(u, begin + n, count - n, load_some(u.noise + begin + n, count - n));
        }
    } else {
        const uint64_t id = (uint64_t)u.sample_ids[image];
        const PhiloxKeys keys = PhiloxKeys::of(u.seed);
        for (int64_t n = 0; n < count; n += 4 * kLanes) {
            Vec z[4];
            deviates_of_sample((first + n) / (4 * kLanes), u.step, id, keys, z);
            for (int m = 0; m < 4; ++m) {
                const int64_t at = n + m * kLanes;
                if (at < count) update_vector<true>(u, begin + at, count - at, z[m]);
            }
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
