// Residual, update, noise and clamp in one pass over memory, for models whose forward runs elsewhere; and the noise
// alone. A thread takes the four elements of one Philox counter.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/tail.cuh"

namespace fastmalade::cuda {

FASTMALADE_KERNEL(kBlockThreads) update_kernel(const FASTMALADE_GRID_CONSTANT UpdateParameters p) {
    const uint64_t seed = seed_of(p.noise);
    const int64_t quads = (p.elements + 3) / 4;
    const float d = p.step.noise_scale;
    for (int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; n < p.batch * quads;
         n += (int64_t)gridDim.x * blockDim.x) {
        const int64_t image = n / quads, quad = n % quads, at = image * p.elements + 4 * quad;
        const bool drawn = d != 0.0f && !p.noise.given;
        Normals z{};
        if (drawn) z = normals(seed, sample_id_of(p.noise, image), p.step.number, (uint32_t)quad);
        FASTMALADE_UNROLL
        for (int j = 0; j < 4; ++j) {
            if (4 * quad + j >= p.elements) continue;
            const float x = p.x[at + j];
            float v = fmaf(p.step.step_size, p.reconstruction[at + j] - x, x);
            if (d != 0.0f) v = fmaf(d, drawn ? z.z[j] : p.noise.given[at + j], v);
            p.out[at + j] = clamped(v, p.step.low, p.step.high);
        }
    }
}

FASTMALADE_KERNEL(kBlockThreads) noise_kernel(const FASTMALADE_GRID_CONSTANT NoiseParameters p) {
    const uint64_t seed = seed_of(p.noise);
    const int64_t quads = (p.elements + 3) / 4;
    for (int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; n < p.batch * quads;
         n += (int64_t)gridDim.x * blockDim.x) {
        const int64_t image = n / quads, quad = n % quads;
        const uint64_t id = sample_id_of(p.noise, image);
        if (p.words) {
            const PhiloxWords words =
                philox4x32(PhiloxWords{{(uint32_t)quad, p.step, (uint32_t)id, (uint32_t)(id >> 32)}}, (uint32_t)seed,
                           (uint32_t)(seed >> 32));
            for (int j = 0; j < 4; ++j) p.words[4 * n + j] = words.w[j];
        }
        if (p.z) {
            const Normals z = normals(seed, id, p.step, (uint32_t)quad);
            for (int j = 0; j < 4; ++j) {
                if (4 * quad + j < p.elements) p.z[image * p.elements + 4 * quad + j] = z.z[j];
            }
        }
    }
}

}  // namespace fastmalade::cuda
