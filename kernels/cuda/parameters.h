// Arguments of the kernels. They travel by value: a chain then needs no copy to the device, and a launch recorded in a
// CUDA graph can be replayed.
#pragma once

#include <stdint.h>

#include "common/layout.h"

namespace fastmalade::cuda {

// Steps of one launch; a longer chain is several launches. Four numbers for each must fit the 4 KB that every driver
// allows.
constexpr int kMostSteps = 128;

struct StepSettings {
    float step_size[kMostSteps];    // a_t
    float noise_scale[kMostSteps];  // d_t
    float low[kMostSteps];
    float high[kMostSteps];
};

// Where z_t comes from.
struct NoiseSource {
    uint64_t seed;
    const int64_t* seed_pointer;  // (1,) on the device, read at run time in place of `seed`; or null
    const int64_t* sample_ids;    // (B,) on the device, or null for 0 .. B-1
    const float* given;           // (N, B, C, H, W) on the device from step 0 of the chain on, or null
};

struct ChainParameters {
    int channels, height, width, hidden1, hidden2;
    int images;       // of a group, where the form leaves it to the launch
    int blocks;       // of a group, in the form split
    float* exchange;  // device memory of that form (exchange.cuh)
    int64_t batch;
    int steps;              // of this launch
    int first_step;         // its place in the chain: noise is counted from there
    bool reconstruct_only;  // out = r(x), no step
    bool trajectory;        // out gets every state of this launch but its first
    const float* packed;    // packed_model.cuh
    const float* x;         // (B, C, H, W)
    float* out;             // (B, C, H, W), or (steps, B, C, H, W) where trajectory
    NoiseSource noise;
    StepSettings settings;
};

struct GradientParameters {
    int channels, height, width, hidden1, hidden2;
    int images;
    int blocks;
    float* exchange;
    int64_t batch;
    int steps;
    int first_step;
    const float* packed;
    const float* states;     // (steps, B, C, H, W), x_t of every step of this launch
    const float* cotangent;  // (B, C, H, W), with respect to the state after the last of them
    float* gradient;         // (B, C, H, W), with respect to the first state
    float* noise_gradient;   // (steps, B, C, H, W), or null
    // In place of steps: gradient = that of |x - r(x)|^2 with respect to x = states. One "step", no cotangent.
    bool reconstruction_error;
    NoiseSource noise;
    StepSettings settings;
};

}  // namespace fastmalade::cuda
