// What one instruction set offers: a table of functions, one table per object. Nothing here is compiled with special
// flags, and reading a table executes no special instruction.
#pragma once

#include <stdint.h>

#include "common/layout.h"

namespace fastmalade::cpu {

// The operations in one form (throughput: a group of up to `lanes` images; latency: one image).
struct FormKernels {
    int64_t images;  // most images of one call
    int64_t (*packed_floats)(const AutoencoderShape& shape);
    // packed: (packed_floats,), 64-byte aligned
    void (*pack)(const AutoencoderShape& shape, const AutoencoderWeights& weights, float* packed);
    // Working memory of one call: it depends on the image's shape, never on the batch or the number of steps.
    int64_t (*scratch_floats)(const AutoencoderShape& shape);
    // All steps of images first .. first+count-1 of the batch. scratch: (scratch_floats,), 64-byte aligned, any content.
    void (*langevin_chain)(const AutoencoderShape& shape, const float* packed, const ChainArguments& arguments,
                           int64_t first, int64_t count, float* scratch);
    // out = r(x). x, out: (batch, C, H, W)
    void (*autoencoder_forward)(const AutoencoderShape& shape, const float* packed, const float* x, float* out,
                                int64_t first, int64_t count, float* scratch);
};

struct Kernels {
    const char* isa;
    int64_t lanes;
    // About how many single images cost as much as one group, full or not: decides what a small batch is cut into.
    double images_per_group_time;
    FormKernels throughput;
    FormKernels latency;
    // One sample: words (4 * counters,) of counters 0 .. counters-1, as non-negative integers.
    void (*philox_words)(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t counters, int64_t* words);
    // One sample: z (elements,)
    void (*standard_normal)(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t elements, float* z);
    // y = tanh(x), (n,) each: the activation function by itself, for accuracy tests
    void (*tanh)(const float* x, int64_t n, float* y);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace fastmalade::cpu
