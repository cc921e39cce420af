// All N steps of the chain in one launch: x <- clamp(x + a_t (r(x) - x) + d_t z_t). Blocks are persistent: weights are
// loaded once, then group after group of images goes through all its steps without leaving the chip.
#pragma once

#include "cuda/autoencoder.cuh"
#include "cuda/noise.cuh"
#include "cuda/tail.cuh"

namespace fastmalade::cuda {

template <class Form>
FASTMALADE_DEVICE Block<Form> make_block(const LaunchParameters& p) {
    Block<Form> b{};
    if constexpr (!Form::Shape::is_fixed) {
        b.s = typename Form::Shape{p.channels, p.height, p.width, p.hidden1, p.hidden2};
    }
    b.images = Form::images > 0 ? Form::images : p.images;
    b.at = packed_layout<typename Form::Tiles>(b.s);
    b.planes = make_planes<Form>(b.s, b.images, Form::resident ? b.at.forward_floats : 0);
    b.memory = block_memory();
    b.weights = Form::resident ? b.memory : p.packed;
    return b;
}

// Copies the weights, a multiple of four floats, into this block's shared memory.
template <class Form>
FASTMALADE_DEVICE void load_weights(const Block<Form>& b, const float* packed) {
    const float4* from = reinterpret_cast<const float4*>(packed);
    float4* to = reinterpret_cast<float4*>(b.memory);
    for (int n = threadIdx.x; n < b.at.forward_floats / 4; n += blockDim.x) to[n] = from[n];
}

// Copies a group's images (from, contiguous) into a plane of this block, zeros where the batch has ended.
template <class Form>
FASTMALADE_DEVICE void load_images(const Block<Form>& b, const Plane& plane, const float* from, int64_t first,
                                   int64_t batch) {
    const int width = b.s.width, height = b.s.height, pixels = b.s.channels * height * width;
    for (int n = threadIdx.x; n < b.images * pixels; n += blockDim.x) {
        const int image = n / pixels, element = n % pixels;
        *b.place(plane, element / width / height, element / width % height, element % width, image) =
            first + image < batch ? from[first * pixels + n] : 0.0f;
    }
}

// r(x), residual, update, noise and clamp. The new state replaces the old one, and is written to memory where it is
// wanted.
template <class Form>
FASTMALADE_DEVICE void finish_step(const Block<Form>& b, const ChainParameters& p, uint64_t seed, int64_t first,
                                   int t) {
    const float a = p.steps.step_size[t], d = p.steps.noise_scale[t];
    const float low = p.steps.low[t], high = p.steps.high[t];
    const int pixels = b.s.channels * b.s.height * b.s.width;
    const bool written = p.trajectory || t == p.steps.count - 1;
    float* out = p.out + (p.trajectory ? (int64_t)t * p.batch * pixels : 0);
    for (int n = b.first(); n < quad_count(b); n += b.step()) {
        const Quad quad(b, n);
        const int64_t index = first + quad.image;
        const int element = quad.element(b);
        float v[4];
        reconstruct(b, quad, v);
        float* x = b.place(b.planes.state, quad.c, quad.y, quad.x, quad.image);
        if (!p.reconstruct_only) {
            FASTMALADE_UNROLL
            for (int j = 0; j < 4; ++j) v[j] = fmaf(a, v[j] - x[j * b.images], x[j * b.images]);
            if (d != 0.0f && index < p.batch) {
                const Normals z = noise_of_quad(p.noise, seed, p.batch, index, pixels, p.steps.first + t, element);
                FASTMALADE_UNROLL
                for (int j = 0; j < 4; ++j) v[j] = fmaf(d, z.z[j], v[j]);
            }
            FASTMALADE_UNROLL
            for (int j = 0; j < 4; ++j) v[j] = clamped(v[j], low, high);
        }
        if (t < p.steps.count - 1) {
            FASTMALADE_UNROLL
            for (int j = 0; j < 4; ++j) b.peers.put(x + j * b.images, v[j]);
        }
        if (written && index < p.batch) {
            // 16-byte aligned: an image is a multiple of 16 elements, and the array is the caller's own allocation.
            *reinterpret_cast<float4*>(out + index * pixels + element) = make_float4(v[0], v[1], v[2], v[3]);
        }
    }
}

// layers(): computes from the state to the even pixels of deconv2, and ends with a barrier.
template <class Form, class Layers>
FASTMALADE_DEVICE void run_chain(const Block<Form>& b, const ChainParameters& p, const Layers& layers) {
    if constexpr (Form::resident) load_weights(b, p.packed);
    const uint64_t seed = seed_of(p.noise);
    const int64_t groups = (p.batch + b.images - 1) / b.images;
    const int size = b.peers.size();
    for (int64_t group = blockIdx.x / size; group < groups; group += gridDim.x / size) {
        load_images(b, b.planes.state, p.x, group * b.images, p.batch);
        // For all blocks of the group: none may store where another is still loading, or read what is not there yet.
        b.peers.template sync<5>();
        for (int t = 0; t < p.steps.count; ++t) {
            layers();
            finish_step(b, p, seed, group * b.images, t);
            b.peers.template sync<6>();
        }
    }
}

template <class Form>
FASTMALADE_KERNEL(kBlockThreads)
chain_kernel(const FASTMALADE_GRID_CONSTANT ChainParameters p) {
    const Block<Form> b = make_block<Form>(p);
    run_chain(b, p, [&] { encode_decode(b); });
}

}  // namespace fastmalade::cuda
