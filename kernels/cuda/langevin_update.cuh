// Residual, update, noise and clamp in one pass over memory, for models whose forward runs elsewhere; and the noise
// alone.
#pragma once

#include "cuda/parameters.h"
#include "cuda/tail.cuh"

namespace fastmalade::cuda {

struct UpdateParameters {
    int64_t batch;
    int64_t elements;             // of one image
    const float* x;               // (B, elements)
    const float* reconstruction;  // (B, elements)
    const float* noise;           // (B, elements), or null
    float* out;                   // (B, elements)
    float step_size, noise_scale, low, high;
    uint64_t seed;
    const int64_t* seed_pointer;  // (1,) on the device, or null: `seed`
    const int64_t* sample_ids;    // (B,) or null for 0 .. B-1
    uint32_t step;
};

// A thread takes the four elements of one Philox counter.
FASTMALADE_KERNEL(256) update_kernel(const FASTMALADE_GRID_CONSTANT UpdateParameters p) {
    const uint64_t seed = p.seed_pointer ? (uint64_t)*p.seed_pointer : p.seed;
    const int64_t quads = (p.elements + 3) / 4;
    for (int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; n < p.batch * quads;
         n += (int64_t)gridDim.x * blockDim.x) {
        const int64_t image = n / quads, quad = n % quads, at = image * p.elements + 4 * quad;
        const bool drawn = p.noise_scale != 0.0f && !p.noise;
        Normals z{};
        if (drawn) z = normals(seed, (uint64_t)(p.sample_ids ? p.sample_ids[image] : image), p.step, (uint32_t)quad);
        FASTMALADE_UNROLL
        for (int j = 0; j < 4; ++j) {
            if (4 * quad + j >= p.elements) continue;
            const float x = p.x[at + j];
            float v = fmaf(p.step_size, p.reconstruction[at + j] - x, x);
            if (p.noise_scale != 0.0f) v = fmaf(p.noise_scale, drawn ? z.z[j] : p.noise[at + j], v);
            p.out[at + j] = clamped(v, p.low, p.high);
        }
    }
}

struct NoiseParameters {
    int64_t batch;
    int64_t elements;
    uint64_t seed;
    const int64_t* seed_pointer;  // (1,) on the device, or null: `seed`
    const int64_t* sample_ids;    // (B,)
    uint32_t step;
    float* z;        // (B, elements), or null
    int64_t* words;  // (B, 4 ceil(elements / 4)), or null
};

FASTMALADE_KERNEL(256) noise_kernel(const FASTMALADE_GRID_CONSTANT NoiseParameters p) {
    const uint64_t seed = p.seed_pointer ? (uint64_t)*p.seed_pointer : p.seed;
    const int64_t quads = (p.elements + 3) / 4;
    for (int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; n < p.batch * quads;
         n += (int64_t)gridDim.x * blockDim.x) {
        const int64_t image = n / quads, quad = n % quads;
        const uint64_t id = (uint64_t)p.sample_ids[image];
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
