// The gradient of |x - r(x)|^2 through r, the step of APuDAE (paper 003, eq. 8): e - J_r(x)^T e with e = 2 (x - r(x)).
#pragma once

#include "cuda/tail.cuh"

namespace fastmalade::cuda {

// start_back for the error: e goes where the cotangent is kept, and the state turns into the cotangent -e of conv3's
// sums. What comes back through the layers is then added to e.
template <class Form>
FASTMALADE_DEVICE void start_error_back(const Block<Form>& b) {
    for (int n = b.first(); n < quad_count(b); n += b.step()) {
        const Quad quad(b, n);
        float r[4];
        reconstruct(b, quad, r);
        float* x = b.place(b.planes.state, quad.c, quad.y, quad.x, quad.image);
        float* g = b.place(b.planes.cotangent, quad.c, quad.y, quad.x, quad.image);
        FASTMALADE_UNROLL
        for (int j = 0; j < 4; ++j) {
            const float error = 2.0f * (x[j * b.images] - r[j]);
            b.peers.put(g + j * b.images, error);
            b.peers.put(x + j * b.images, -error * fmaf(-r[j], r[j], 1.0f));
        }
    }
}

}  // namespace fastmalade::cuda
