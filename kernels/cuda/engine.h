// Entry points of the CUDA kernels: plain pointers to device memory, host scalars, a stream. The choice of the form is
// here too, as a function of facts about the device, so that it can be tested on a machine that has none.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "common/layout.h"

namespace fastmalade::cuda {

enum class FormName { automatic, digits, general, cluster, split, tensor };

// Of the products of conv2 and deconv1: float32 throughout; operands split into two TF32 numbers, three products; or
// operands rounded to TF32.
enum class Precision { fp32, tf32x3, tf32 };

// As users write it.
const char* name_of(FormName form);

struct DeviceFacts {
    int multiprocessors;
    int shared_bytes;      // most that one block may ask for
    int most_cluster;      // blocks of one cluster; 1 where there are no clusters
    bool has_tf32 = true;  // tensor cores that take TF32, and code for them in this build
};

// How a call is launched.
struct Choice {
    FormName form;
    int images;     // of a group
    int cluster;    // blocks of a group
    bool resident;  // weights in shared memory
    int blocks, threads, shared_bytes;
    int packed_floats;  // size of the workspace: weights, and in the form split what its blocks exchange
    Precision precision = Precision::fp32;
};

// images, cluster: 0 for the best. Throws std::invalid_argument, saying what does not fit, where no form takes the
// shape or the precision. A gradient is computed in float32 whatever the precision of the chain.
Choice choose(const AutoencoderShape& shape, int64_t batch, bool gradient, const DeviceFacts& device, FormName form,
              int images, int cluster, Precision precision = Precision::fp32);

// Host arrays of N.
struct Steps {
    const std::vector<float>&step_sizes, &noise_scales, &lows, &highs;
};

struct Noise {
    uint64_t seed;
    const int64_t* seed_pointer;  // (1,) on the device, in place of `seed`; or null
    const int64_t* sample_ids;    // (B,) on the device; or null for 0 .. B-1
    const float* given;           // (N, B, C, H, W) on the device; or null
};

// weights: of arrays on the device. workspace: (choice.packed_floats,) on the device, 16-byte aligned. stream: a
// cudaStream_t. x: (B, C, H, W). out: (B, C, H, W), or (N + 1, B, C, H, W) where trajectory, entry 0 already x; where
// reconstruct_only r(x), and steps are not read. All throw std::runtime_error with CUDA's own words where a launch
// fails.
void langevin_chain(const Choice& choice, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    float* workspace, int64_t batch, const float* x, const Steps& steps, const Noise& noise, float* out,
                    bool trajectory, bool reconstruct_only, void* stream);

// states: (N + 1, B, C, H, W) as the chain's trajectory. cotangent, gradient: (B, C, H, W). noise_gradient: (N, B, C,
// H, W) or null.
void langevin_chain_gradient(const Choice& choice, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                             float* workspace, int64_t batch, const float* states, const Steps& steps,
                             const Noise& noise, const float* cotangent, float* gradient, float* noise_gradient,
                             void* stream);

// Gradient of |x - r(x)|^2 with respect to x, through r. choice: as for the gradient. x, gradient: (B, C, H, W).
void reconstruction_error_gradient(const Choice& choice, const AutoencoderShape& shape,
                                   const AutoencoderWeights& weights, float* workspace, int64_t batch, const float* x,
                                   float* gradient, void* stream);

// x, reconstruction, given, out: (B, elements)
void langevin_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction, float step_size,
                     float noise_scale, float low, float high, const Noise& noise, uint32_t step, float* out,
                     void* stream);

// z: (B, elements) or null; words: (B, 4 ceil(elements / 4)) or null
void standard_normal(int64_t batch, int64_t elements, const Noise& noise, uint32_t step, float* z, int64_t* words,
                     void* stream);

}  // namespace fastmalade::cuda
