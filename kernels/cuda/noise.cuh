// The noise that a step adds, drawn or given.
#pragma once

#include "cuda/elementary.cuh"
#include "cuda/parameters.h"

namespace fastmalade::cuda {

FASTMALADE_DEVICE uint64_t seed_of(const NoiseSource& noise) {
    return noise.seed_pointer ? (uint64_t)*noise.seed_pointer : noise.seed;
}

FASTMALADE_DEVICE uint64_t sample_id_of(const NoiseSource& noise, int64_t index) {
    return (uint64_t)(noise.sample_ids ? noise.sample_ids[index] : index);
}

// z of the quad (the four elements of one Philox counter) that starts at `element` of image `index` of the batch, which
// has `pixels` elements an image. seed: by seed_of, which is read once.
FASTMALADE_DEVICE Normals noise_of_quad(const NoiseSource& noise, uint64_t seed, int64_t batch, int64_t index,
                                        int pixels, int step, int element) {
    if (noise.given) {
        const float* z = noise.given + ((int64_t)step * batch + index) * pixels + element;
        return Normals{{z[0], z[1], z[2], z[3]}};
    }
    return normals(seed, sample_id_of(noise, index), (uint32_t)step, (uint32_t)element / 4);
}

}  // namespace fastmalade::cuda
