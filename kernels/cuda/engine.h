// Entry points of the CUDA kernels: plain pointers to device memory, host scalars, a stream. The choice of the form is
// here too. It is a function of facts about the device, so that it can be tested on a machine without one.
#pragma once

#include <stdint.h>

#include <vector>

#include "common/layout.h"
#include "cuda/parameters.h"

namespace fastmalade::cuda {

enum class FormName { automatic, digits, general, cluster, tensor };

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

// What a caller asks for. automatic and 0 leave it to choose().
struct Request {
    FormName form = FormName::automatic;
    int images = 0;   // of a group
    int cluster = 0;  // blocks of a group
    Precision precision = Precision::fp32;
};

// How a call is launched.
struct Choice {
    FormName form;
    int images;     // of a group
    int cluster;    // blocks of a group
    bool resident;  // weights in shared memory
    int blocks, threads, shared_bytes;
    int packed_floats;  // size of the workspace, which holds the packed weights
    Precision precision;
};

// Throws std::invalid_argument, saying what does not fit, where no form takes the shape or the precision. A gradient is
// computed in float32 whatever the precision of the chain.
Choice choose(const AutoencoderShape& shape, int64_t batch, bool gradient, const DeviceFacts& device,
              const Request& request);

// sizes: five, in the order of the members, which is also the one in which callers list them
inline AutoencoderShape shape_of(const int64_t* sizes) {
    AutoencoderShape s{};
    s.channels = sizes[0], s.height = sizes[1], s.width = sizes[2], s.hidden1 = sizes[3], s.hidden2 = sizes[4];
    return s;
}

// What all launches of the chain or of its gradient take. Weights are arrays on the device.
struct Call {
    Choice choice;  // by choose(), with gradient as the call is one
    AutoencoderShape shape;
    AutoencoderWeights weights;
    int64_t batch;
    float* workspace;  // (choice.packed_floats,) on the device, 16-byte aligned
    void* stream;      // a cudaStream_t
};

// The N steps of a chain, on the host.
struct Steps {
    std::vector<float> step_sizes, noise_scales, lows, highs;
};

// All functions below throw std::runtime_error with CUDA's message where a launch fails.

// x: (B, C, H, W). out: (B, C, H, W), or (N + 1, B, C, H, W) where trajectory, of which entry 0 is x already.
void langevin_chain(const Call& call, const float* x, const Steps& steps, const NoiseSource& noise, float* out,
                    bool trajectory);

// out = r(x). x, out: (B, C, H, W).
void autoencoder_forward(const Call& call, const float* x, float* out);

// states: (N + 1, B, C, H, W) as the chain's trajectory. cotangent, gradient: (B, C, H, W). noise_gradient: (N, B, C,
// H, W) or null.
void langevin_chain_gradient(const Call& call, const float* states, const Steps& steps, const NoiseSource& noise,
                             const float* cotangent, float* gradient, float* noise_gradient);

// Gradient of |x - r(x)|^2 with respect to x, through r. x, gradient: (B, C, H, W).
void reconstruction_error_gradient(const Call& call, const float* x, float* gradient);

// x, reconstruction, noise.given, out: (B, elements)
void langevin_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction, const Step& step,
                     const NoiseSource& noise, float* out, void* stream);

// z: (B, elements) or null; words: (B, 4 ceil(elements / 4)) or null
void standard_normal(int64_t batch, int64_t elements, const NoiseSource& noise, uint32_t step, float* z, int64_t* words,
                     void* stream);

}  // namespace fastmalade::cuda
