// Arguments of the kernels. They are passed by value: a chain then copies nothing to the device first, and a launch
// recorded in a CUDA graph can be replayed.
#pragma once

#include <stdint.h>

#include "common/layout.h"

namespace fastmalade::cuda {

// Where z_t comes from. Pointers are to device memory.
struct NoiseSource {
    uint64_t seed;
    const int64_t* seed_pointer;  // (1,), read when the kernel runs, in place of `seed`; or null
    const int64_t* sample_ids;    // (B,), or null for 0 .. B-1
    const float* given;           // (N, B, C, H, W), of all N steps of the chain, in place of drawn noise; or null
};

// One step of a chain: clamp(x + step_size (r - x) + noise_scale z, low, high).
struct Step {
    uint32_t number;  // t, from which the noise is drawn
    float step_size, noise_scale, low, high;
};

// A launch computes at most so many steps; a longer chain is several launches. Four numbers for each have to fit into
// the 4 KB of arguments that every driver allows.
constexpr int kMostSteps = 128;

// The steps of one launch.
struct LaunchSteps {
    int first;  // t of the first of them in the chain
    int count;
    float step_size[kMostSteps];    // a_t
    float noise_scale[kMostSteps];  // d_t
    float low[kMostSteps];
    float high[kMostSteps];
};

// What the chain and its gradient have in common.
struct LaunchParameters {
    int channels, height, width, hidden1, hidden2;
    int images;  // of a group, where the form does not fix it
    int64_t batch;
    const float* packed;  // the weights (packed_model.cuh)
    NoiseSource noise;
    LaunchSteps steps;
};

struct ChainParameters : LaunchParameters {
    const float* x;         // (B, C, H, W)
    float* out;             // (B, C, H, W), or (steps, B, C, H, W) where trajectory
    bool trajectory;        // out gets every state of this launch but its first
    bool reconstruct_only;  // out = r(x); no step is made
};

struct GradientParameters : LaunchParameters {
    const float* states;     // (steps, B, C, H, W), x_t of every step of this launch
    const float* cotangent;  // (B, C, H, W), with respect to the state after the last of them
    float* gradient;         // (B, C, H, W), with respect to the first state
    float* noise_gradient;   // (steps, B, C, H, W), or null
    // In place of steps: gradient = that of |x - r(x)|^2 with respect to x = states. One "step", no cotangent.
    bool reconstruction_error;
};

struct UpdateParameters {
    int64_t batch;
    int64_t elements;             // of one image
    const float* x;               // (B, elements)
    const float* reconstruction;  // (B, elements)
    float* out;                   // (B, elements)
    Step step;
    NoiseSource noise;  // given: (B, elements)
};

struct NoiseParameters {
    int64_t batch;
    int64_t elements;
    uint32_t step;
    NoiseSource noise;  // given: not read
    float* z;           // (B, elements), or null
    int64_t* words;     // (B, 4 ceil(elements / 4)), or null
};

}  // namespace fastmalade::cuda
