// The border between host/ and isa/: the table of functions that every instruction set provides. This file is compiled
// without special flags, and reading a table executes no special instruction.
#pragma once

#include <stdint.h>

#include "common/layout.h"

namespace fastmalade::cpu {

// Working memory of one call of a gradient, in floats.
struct GradientMemory {
    int64_t fixed;   // needed whatever is kept
    int64_t state;   // of each checkpoint
    int64_t record;  // of each recorded step
};

// A chain's gradient goes back over steps that it has run again and recorded. What it keeps in the meantime is decided
// by a program of actions, which fastmalade/backends/gradient_plan.py makes and the engine's caller has checked.
struct GradientAction {
    enum Kind : int64_t {
        load,     // state <- checkpoint `which`, number 0 being x: the state before step `step`
        save,     // checkpoint `which` <- state
        advance,  // runs steps step .. step+which-1
        record,   // the same, and keeps their activations
        reverse   // takes the gradient back over the `which` recorded steps, the first of which is `step`
    };
    int64_t kind, step, which;
};

struct GradientArguments {
    const float* cotangent;         // (B, C, H, W)  gradient with respect to the chain's result
    float* gradient;                // (B, C, H, W)  with respect to x
    const GradientAction* actions;  // (n_actions,)
    int64_t n_actions;
    int64_t checkpoints, records;  // most that exist at once, x not counted
};

// A product with the Jacobian of r alone, at x: out = scale (J_r^T g) + own g, where g is the cotangent or, if that is
// null, 2 (x - r(x)). scale 1 and own 0 give the autoencoder's vector-Jacobian product, -1 and 1 the gradient of
// |x - r(x)|^2.
struct JacobianArguments {
    int64_t batch;
    const float* x;          // (B, C, H, W)
    const float* cotangent;  // (B, C, H, W), or null
    float scale, own;
    float* out;  // (B, C, H, W)
};

// What a vector holds: one image in each lane, some channels of four images, or channels of one (cpu/isa/forms.h).
enum FormIndex { throughput, quad, latency, form_count };

// The operations in one form.
struct FormKernels {
    int64_t images;  // most images that one call takes
    int64_t (*packed_floats)(const AutoencoderShape& shape);
    // packed: (packed_floats,), 64-byte aligned. Depends on height and width only through Kernels::packing.
    void (*pack)(const AutoencoderShape& shape, const AutoencoderWeights& weights, float* packed);
    int64_t (*transpose_floats)(const AutoencoderShape& shape);
    // packed: (transpose_floats,), 64-byte aligned: the weights that only gradients read
    void (*pack_transposes)(const AutoencoderShape& shape, const AutoencoderWeights& weights, float* packed);
    // Working memory of one call. It depends on the image's shape, not on the batch or the number of steps.
    int64_t (*scratch_floats)(const AutoencoderShape& shape);
    // All steps of images first .. first+count-1 of the batch. scratch: (scratch_floats,), 64-byte aligned; it may
    // hold anything.
    void (*langevin_chain)(const AutoencoderShape& shape, const float* packed, const ChainArguments& arguments,
                           int64_t first, int64_t count, float* scratch);
    // Runs one stage of a step on its own, for benchmarks: 0 .. kStages-1, see kStageNames.
    void (*run_stage)(const AutoencoderShape& shape, const float* packed, int stage, float* scratch);
    // out = r(x). x, out: (batch, C, H, W)
    void (*autoencoder_forward)(const AutoencoderShape& shape, const float* packed, const float* x, float* out,
                                int64_t first, int64_t count, float* scratch);
    // weights: where the gradient with respect to them is wanted too
    GradientMemory (*gradient_memory)(const AutoencoderShape& shape, bool weights);
    // Vector-Jacobian product of the chain with respect to x, for the noise of the forward pass. Ignores arguments.out.
    // scratch: (fixed + checkpoints * state + records * record,). weight_sums: null, or (count, weight_sum_floats):
    // what each image has to add to the gradient with respect to the weights, with the same bits in every form.
    void (*chain_gradient)(const AutoencoderShape& shape, const float* packed, const float* transposes,
                           const ChainArguments& arguments, const GradientArguments& gradient, int64_t first,
                           int64_t count, float* scratch, float* weight_sums);
    // The chain with the activations of all steps kept, and the gradient from them. records: (N * record,), 64-byte
    // aligned; scratch: (fixed,)
    void (*recorded_chain)(const AutoencoderShape& shape, const float* packed, const ChainArguments& arguments,
                           int64_t first, int64_t count, float* scratch, float* records);
    void (*chain_reverse)(const AutoencoderShape& shape, const float* transposes, const ChainArguments& arguments,
                          const float* cotangent, float* gradient, int64_t first, int64_t count, float* scratch,
                          const float* records);
    // scratch: (fixed + record,)
    void (*autoencoder_gradient)(const AutoencoderShape& shape, const float* packed, const float* transposes,
                                 const JacobianArguments& arguments, int64_t first, int64_t count, float* scratch);
};

// One step for any r: out = clamp(x + a (r - x) + d z), a = step_size, d = noise_scale. No noise is drawn or read where
// d is 0. out may be x or r.
struct UpdateArguments {
    int64_t batch, elements;      // B, elements of one image
    const float* x;               // (B, elements)
    const float* reconstruction;  // (B, elements)  r(x)
    float step_size, noise_scale, low, high;
    uint64_t seed;              // Philox key
    const int64_t* sample_ids;  // (B,)  read as unsigned 64-bit
    uint32_t step;              // t
    const float* noise;         // (B, elements), or null: z comes from Philox
    float* out;                 // (B, elements)
};

constexpr int kStages = 5;
constexpr const char* kStageNames[kStages] = {"conv1", "conv2", "deconv1", "deconv2", "conv3, update and noise"};

struct Kernels {
    const char* isa;
    int64_t lanes;
    // Roughly how long one call takes in each form, whether it is full or not; the unit is a call of the latency form.
    // The engine decides by it how to cut a small batch.
    double call_time[form_count];
    // Shapes that give the same number can share a packed model.
    int64_t (*packing)(const AutoencoderShape& shape);
    FormKernels forms[form_count];
    int64_t (*weight_sum_floats)(const AutoencoderShape& shape);
    // The gradient with respect to the weights from the sums of a batch: all ten arrays, one after the other, as
    // AutoencoderWeights lays them out. sums: (weight_sum_floats,)
    void (*weight_gradient)(const AutoencoderShape& shape, const AutoencoderWeights& weights, const double* sums,
                            float* out);
    // One sample: words (4 * counters,) of counters 0 .. counters-1, as non-negative integers.
    void (*philox_words)(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t counters, int64_t* words);
    // One sample: z (elements,)
    void (*standard_normal)(uint64_t seed, uint64_t sample_id, uint32_t step, int64_t elements, float* z);
    // y = tanh(x), (n,) each: the activation function by itself, for accuracy tests
    void (*tanh)(const float* x, int64_t n, float* y);
    // Elements first .. first+count-1 of one image; first is a multiple of 64.
    void (*langevin_update)(const UpdateArguments& arguments, int64_t image, int64_t first, int64_t count);
    // Runs independent multiply-adds out of registers and returns their number of floating-point operations. The result
    // is stored in sink, (1,), so that it has to be computed.
    int64_t (*multiply_adds)(int64_t rounds, float* sink);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace fastmalade::cpu
