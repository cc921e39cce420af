// The last convolution, four neighbouring pixels at a time: the four elements whose noise comes from one Philox
// counter.
//
// deconv2 is computed on the even pixels only; every other pixel of its output is the constant tanh(bias). The sums
// start from the precomputed share of those constants (packed_model.cuh) and add the even pixels by ascending input
// channel, ky, kx.
#pragma once

#include "cuda/block.cuh"
#include "cuda/elementary.cuh"

namespace fastmalade::cuda {

// First, second, inner even, inner odd, last but one, last.
FASTMALADE_DEVICE int border_case(int position, int size) {
    return position < 2 ? position : position >= size - 2 ? position - size + 6 : 2 + position % 2;
}

struct Quad {
    int c, y, x, image;  // elements x .. x+3 of row y
    template <class Form>
    FASTMALADE_DEVICE Quad(const Block<Form>& b, int n) {
        const int quads = b.s.width / 4;
        image = n % b.images;
        x = 4 * (n / b.images % quads);
        y = n / b.images / quads % b.s.height;
        c = n / b.images / quads / b.s.height;
    }
    // Number of its first element in an image, counted over C x H x W.
    template <class Form>
    FASTMALADE_DEVICE int element(const Block<Form>& b) const {
        return (c * b.s.height + y) * b.s.width + x;
    }
};

template <class Form>
FASTMALADE_DEVICE int quad_count(const Block<Form>& b) {
    return b.s.channels * b.s.height * (b.s.width / 4) * b.images;
}

// r(x) at the four pixels of a quad.
template <class Form>
FASTMALADE_DEVICE void reconstruct(const Block<Form>& b, const Quad& quad, float (&r)[4]) {
    const int channels = b.s.channels, height = b.s.height, width = b.s.width, columns = width / 2, rows = height / 2;
    const float* start = b.weights + b.at.conv3_start + border_case(quad.y, height) * 6 * channels + quad.c;
    float sum[4];
    FASTMALADE_UNROLL
    for (int p = 0; p < 4; ++p) sum[p] = start[border_case(quad.x + p, width) * channels];
    const int q = quad.x / 2;
    const bool has_left = q > 0, has_right = q + 2 < columns;
    for (int i = 0; i < channels; ++i) {
        const float* weights = b.weights + b.at.conv3 + (quad.c * channels + i) * 25;
        for (int ky = quad.y % 2; ky < 5; ky += 2) {
            const int row = (quad.y + ky - 2) / 2;  // even; -2 / 2 is -1
            if (row < 0 || row >= rows) continue;
            const float* w = weights + ky * 5;
            const float* even = b.place(b.planes.even, i, row, q, quad.image);
            const float here = even[0], next = even[b.images];
            if (has_left) sum[0] = fmaf(w[0], even[-b.images], sum[0]);
            sum[0] = fmaf(w[2], here, sum[0]);
            sum[0] = fmaf(w[4], next, sum[0]);
            sum[1] = fmaf(w[1], here, sum[1]);
            sum[1] = fmaf(w[3], next, sum[1]);
            sum[2] = fmaf(w[0], here, sum[2]);
            sum[2] = fmaf(w[2], next, sum[2]);
            sum[3] = fmaf(w[1], next, sum[3]);
            if (has_right) {
                const float after = even[2 * b.images];
                sum[2] = fmaf(w[4], after, sum[2]);
                sum[3] = fmaf(w[3], after, sum[3]);
            }
        }
    }
    FASTMALADE_UNROLL
    for (int p = 0; p < 4; ++p) r[p] = tanh_float(sum[p]);
}

// Comparisons are false for NaN, so a NaN state stays NaN.
FASTMALADE_DEVICE float clamped(float v, float low, float high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

}  // namespace fastmalade::cuda
