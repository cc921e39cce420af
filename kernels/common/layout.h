// Plain structures that every backend's kernels share: shapes, weight pointers, the arguments of one chain.
// No torch, Python or standard-library container here: CUDA sources include this file too.
#pragma once

#include <stdint.h>

namespace fastmalade {

// The autoencoder of Table 8 (paper 000): five convolutions, tanh after each.
struct AutoencoderShape {
    int64_t channels;  // C of the image
    int64_t height;    // H, a multiple of 4
    int64_t width;     // W, a multiple of 4
    int64_t hidden1;   // channels after conv1 and after deconv1, at H/2 x W/2
    int64_t hidden2;   // channels after conv2, at H/4 x W/4

    // Always inlined: as a function of its own, compiled with wide instructions, it could be the copy that the linker
    // keeps for all.
    __attribute__((always_inline)) int64_t pixels() const { return channels * height * width; }
};

// Contiguous float32 arrays in PyTorch's own layouts: Conv2d (out, in, ky, kx), ConvTranspose2d (in, out, ky, kx).
struct AutoencoderWeights {
    const float* conv1_weight;    // (hidden1, channels, 5, 5)   stride 2, padding 2
    const float* conv1_bias;      // (hidden1,)
    const float* conv2_weight;    // (hidden2, hidden1, 5, 5)    stride 2, padding 2
    const float* conv2_bias;      // (hidden2,)
    const float* deconv1_weight;  // (hidden2, hidden1, 9, 9)    transposed, stride 2, padding 4, output padding 1
    const float* deconv1_bias;    // (hidden1,)
    const float* deconv2_weight;  // (hidden1, channels, 1, 1)   transposed, stride 2, padding 0, output padding 1
    const float* deconv2_bias;    // (channels,)
    const float* conv3_weight;    // (channels, channels, 5, 5)  stride 1, padding 2
    const float* conv3_bias;      // (channels,)

    // arrays: ten, in the order of the members
    __attribute__((always_inline)) static AutoencoderWeights of(const float* const* arrays) {
        return {arrays[0], arrays[1], arrays[2], arrays[3], arrays[4],
                arrays[5], arrays[6], arrays[7], arrays[8], arrays[9]};
    }
};

// One call of the Langevin chain: x <- clamp(x + a_t (r(x) - x) + d_t z_t), t = 0 .. n_steps-1.
struct ChainArguments {
    int64_t batch;              // B
    int64_t n_steps;            // N
    const float* x;             // (B, C, H, W)
    const float* step_sizes;    // (N,)  a_t, multiplies the residual
    const float* noise_scales;  // (N,)  d_t, multiplies the noise; no noise is drawn where it is 0
    const float* lows;          // (N,)  lower clamp bound, -inf for none
    const float* highs;         // (N,)  upper clamp bound, +inf for none
    uint64_t seed;              // Philox key
    const int64_t* sample_ids;  // (B,)  read as unsigned 64-bit
    const float* noise;         // (N, B, C, H, W), or null: z_t comes from Philox
    float* out;                 // (B, C, H, W), or (N + 1, B, C, H, W) where trajectory
    bool trajectory;            // store every state, entry 0 being x
};

}  // namespace fastmalade
