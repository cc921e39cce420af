// The vector-Jacobian product of the whole chain in one launch, starting with the last step. For a step v = x + a (r(x)
// - x) + d z, x' = clamp(v), the cotangent g of x' becomes that of x:
//
//     g <- g where low <= v <= high, else 0;      g <- g - a g + a J_r(x)^T g
//
// The states are read from device memory, one for each step. Activations are computed again on chip, and the noise is
// drawn again from its counters where a clamp needs v. Each plane of activations h turns in place into the cotangent of
// what went into the tanh, by its slope 1 - h^2.
#pragma once

#include "cuda/langevin_chain.cuh"
#include "cuda/reconstruction_error.cuh"

namespace fastmalade::cuda {

// Last layer and update: g becomes 0 where the clamp acted, and the state turns into the cotangent of conv3's sums.
template <class Form>
FASTMALADE_DEVICE void start_back(const Block<Form>& b, const GradientParameters& p, uint64_t seed, int64_t first,
                                  int t) {
    const float a = p.steps.step_size[t], d = p.steps.noise_scale[t];
    const float low = p.steps.low[t], high = p.steps.high[t];
    const bool bounded = low > -INFINITY || high < INFINITY;
    const int pixels = b.s.channels * b.s.height * b.s.width;
    for (int n = b.first(); n < quad_count(b); n += b.step()) {
        const Quad quad(b, n);
        const int64_t index = first + quad.image;
        const int element = quad.element(b);
        float r[4];
        reconstruct(b, quad, r);
        float* x = b.place(b.planes.state, quad.c, quad.y, quad.x, quad.image);
        float* g = b.place(b.planes.cotangent, quad.c, quad.y, quad.x, quad.image);
        Normals z{{0.0f, 0.0f, 0.0f, 0.0f}};
        const bool noisy = bounded && d != 0.0f && index < p.batch;
        if (noisy) z = noise_of_quad(p.noise, seed, p.batch, index, pixels, p.steps.first + t, element);
        FASTMALADE_UNROLL
        for (int j = 0; j < 4; ++j) {
            float cotangent = g[j * b.images];
            if (bounded) {
                const float state = x[j * b.images];
                float v = fmaf(a, r[j] - state, state);
                if (noisy) v = fmaf(d, z.z[j], v);
                if (v < low || v > high) cotangent = 0.0f;
            }
            b.peers.put(g + j * b.images, cotangent);
            b.peers.put(x + j * b.images, a * cotangent * fmaf(-r[j], r[j], 1.0f));
            if (p.noise_gradient && index < p.batch) {
                p.noise_gradient[((int64_t)t * p.batch + index) * pixels + element + j] = d * cotangent;
            }
        }
    }
}

// From deconv2's sums to deconv1's, position by position.
template <class Form>
FASTMALADE_DEVICE void deconv2_back(const Block<Form>& b) {
    const int columns = b.s.width / 2, rows = b.s.height / 2;
    for (int n = b.first(); n < b.s.hidden1 * rows * columns * b.images; n += b.step()) {
        const int image = n % b.images, x = n / b.images % columns, y = n / b.images / columns % rows;
        const int o = n / b.images / columns / rows;
        float sum = 0.0f;
        for (int c = 0; c < b.s.channels; ++c) {
            sum = fmaf(b.weights[b.at.deconv2 + c * b.s.hidden1 + o], *b.place(b.planes.even, c, y, x, image), sum);
        }
        float* place = b.place(b.planes.upsampled, o, y, x, image);
        b.peers.put(place, sum * fmaf(-*place, *place, 1.0f));
    }
}

// From the cotangent of conv3's sums, in the state's plane, to that of the state: g <- g - a g + J^T of it.
template <class Form>
FASTMALADE_DEVICE void autoencoder_back(const Block<Form>& b, float a) {
    using Shape = typename Form::Shape;
    using Tiles = typename Form::Tiles;
    const int h = b.s.height, w = b.s.width;
    const auto times_tanh = [&](const Plane& plane, int o, int y, int x, int image, float sum) {
        float* place = b.place(plane, o, y, x, image);
        b.peers.put(place, sum * fmaf(-*place, *place, 1.0f));
    };
    convolve_layer<5, 2, 1, fixed_width<Shape>(1), false>(
        b, b.planes.state, b.s.channels, h, w, b.at.conv3_back, -1, b.s.channels,
        [&](int o, int y, int x, int image, float sum) { times_tanh(b.planes.even, o, y, x, image, sum); });
    b.peers.template sync<21>();
    deconv2_back(b);
    b.peers.template sync<22>();
    convolve_layer<9, 4, Tiles::deconv1_back, fixed_width<Shape>(2), false>(
        b, b.planes.upsampled, b.s.hidden1, h / 2, w / 2, b.at.deconv1_back, -1, b.s.hidden2,
        [&](int o, int y, int x, int image, float sum) { times_tanh(b.planes.hidden2, o, y, x, image, sum); });
    b.peers.template sync<23>();
    upsample_layer<3, 1, Tiles::conv2_back, fixed_width<Shape>(4)>(
        b, b.planes.hidden2, b.s.hidden2, h / 4, w / 4, b.at.conv2_back, -1, b.s.hidden1,
        [&](int o, int y, int x, int image, float sum) { times_tanh(b.planes.hidden1, o, y, x, image, sum); });
    b.peers.template sync<24>();
    upsample_layer<3, 1, 1, fixed_width<Shape>(2)>(b, b.planes.hidden1, b.s.hidden1, h / 2, w / 2, b.at.conv1_back, -1,
                                                   b.s.channels, [&](int c, int y, int x, int image, float sum) {
                                                       float* g = b.place(b.planes.cotangent, c, y, x, image);
                                                       b.peers.put(g, fmaf(-a, *g, *g) + sum);
                                                   });
    b.peers.template sync<25>();
}

template <class Form>
FASTMALADE_DEVICE void run_gradient(const GradientParameters& p) {
    const Block<Form> b = make_block<Form>(p);
    const uint64_t seed = seed_of(p.noise);
    const int64_t groups = (p.batch + b.images - 1) / b.images;
    const int size = b.peers.size(), pixels = b.s.channels * b.s.height * b.s.width;
    for (int64_t group = blockIdx.x / size; group < groups; group += gridDim.x / size) {
        const int64_t first = group * b.images;
        if (!p.reconstruction_error) load_images(b, b.planes.cotangent, p.cotangent, first, p.batch);
        for (int t = p.steps.count - 1; t >= 0; --t) {
            load_images(b, b.planes.state, p.states + (int64_t)t * p.batch * pixels, first, p.batch);
            b.peers.template sync<26>();
            encode_decode(b);
            if (p.reconstruction_error) {
                start_error_back(b);
            } else {
                start_back(b, p, seed, first, t);
            }
            b.peers.template sync<27>();
            autoencoder_back(b, p.steps.step_size[t]);
        }
        for (int n = b.first(); n < quad_count(b); n += b.step()) {
            const Quad quad(b, n);
            if (first + quad.image >= p.batch) continue;
            const float* g = b.place(b.planes.cotangent, quad.c, quad.y, quad.x, quad.image);
            float* out = p.gradient + (first + quad.image) * pixels + quad.element(b);
            *reinterpret_cast<float4*>(out) = make_float4(g[0], g[b.images], g[2 * b.images], g[3 * b.images]);
        }
        b.peers.template sync<28>();
    }
}

template <class Form>
FASTMALADE_KERNEL(kBlockThreads)
gradient_kernel(const FASTMALADE_GRID_CONSTANT GradientParameters p) {
    run_gradient<Form>(p);
}

}  // namespace fastmalade::cuda
