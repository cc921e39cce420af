// What the tensor-core form uses of a warp: products of small matrices, rounding to TF32, an exchange between lanes.
// emulation/warp.h has the same for the CPU. All lanes of a warp call them together.
//
// mma.m16n8k8, by the PTX manual's tables for .tf32: lane 4 g + t holds of A (16 x 8) rows g, g + 8 of column t, then
// of column t + 4; of B (8 x 8) rows t and t + 4 of column g; of C (16 x 8) columns 2 t, 2 t + 1 of row g, then of row
// g + 8.
#pragma once

#include "cuda/tensor_layout.cuh"

namespace fastmalade::cuda {

// A number as the tensor cores take it: rounded to TF32 (10 bits after the point), or as the sum of two such numbers,
// which keeps 21 of float32's 23 bits at least.
template <Precision PRECISION>
struct Operand;

template <>
struct Operand<Precision::tf32> {
    float value;
};

template <>
struct Operand<Precision::tf32x3> {
    float high, low;
};

}  // namespace fastmalade::cuda

#if defined(FASTMALADE_EMULATION)
#include "cuda/emulation/warp.h"
#else

namespace fastmalade::cuda {

// Nearest, ties away from zero. The manual leaves the 13 bits below TF32 open; what is left of a split needs them zero.
FASTMALADE_DEVICE float round_to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits & 0xffffe000u);
#else
    __trap();
    return x;
#endif
}

FASTMALADE_DEVICE float exchange(float value, int lanes_apart) {
    return __shfl_xor_sync(0xffffffffu, value, lanes_apart);
}

// sum += A B. Code for GPUs older than sm_80 has no such instruction; choose() refuses the form there.
FASTMALADE_DEVICE void multiply_add(float (&sum)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
#else
    __trap();
#endif
}

FASTMALADE_DEVICE void multiply_add(float (&sum)[4], const Operand<Precision::tf32> (&a)[4],
                                    const Operand<Precision::tf32> (&b)[2]) {
    multiply_add(sum, a[0].value, a[1].value, a[2].value, a[3].value, b[0].value, b[1].value);
}

// The products of two low parts are below float32's last bit and left out. Tensor cores cut off what does not fit
// where they add, always towards zero; a sum over many blocks of K would drift. So a block starts from zero, and float32
// additions, which round to nearest, collect the blocks (Ootomo and Yokota, "Recovering single precision accuracy from
// Tensor Cores while surpassing the FP32 theoretical peak performance", 2022).
FASTMALADE_DEVICE void multiply_add(float (&sum)[4], const Operand<Precision::tf32x3> (&a)[4],
                                    const Operand<Precision::tf32x3> (&b)[2]) {
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_add(part, a[0].low, a[1].low, a[2].low, a[3].low, b[0].high, b[1].high);
    multiply_add(part, a[0].high, a[1].high, a[2].high, a[3].high, b[0].low, b[1].low);
    multiply_add(part, a[0].high, a[1].high, a[2].high, a[3].high, b[0].high, b[1].high);
    FASTMALADE_UNROLL
    for (int e = 0; e < 4; ++e) sum[e] += part[e];
}

// One block of K of a row of positions: position p multiplies the weights with column STRIDE p + first, where there is
// one. sum: [position][16 rows], a: [16 rows], b: [column].
template <int STRIDE, Precision PRECISION, int P, int TILES, int COLUMNS>
FASTMALADE_DEVICE void multiply_row(float (&sum)[P][TILES][4], const Operand<PRECISION> (&a)[TILES][4],
                                    const Operand<PRECISION> (&b)[COLUMNS][2], int first) {
    FASTMALADE_UNROLL
    for (int p = 0; p < P; ++p) {
        const int column = STRIDE * p + first;
        if (column < 0 || column >= COLUMNS) continue;
        FASTMALADE_UNROLL
        for (int m = 0; m < TILES; ++m) multiply_add(sum[p][m], a[m], b[column]);
    }
}

}  // namespace fastmalade::cuda
#endif

namespace fastmalade::cuda {

// x as an operand. For tf32 whoever stores a plane or packs a weight has rounded it already.
template <Precision PRECISION>
FASTMALADE_DEVICE Operand<PRECISION> operand(float x) {
    if constexpr (PRECISION == Precision::tf32) {
        return {x};
    } else {
        const float high = round_to_tf32(x);
        return {high, round_to_tf32(x - high)};
    }
}

// A value as planes and packed weights hold it.
template <Precision PRECISION>
FASTMALADE_DEVICE float stored(float x) {
    return PRECISION == Precision::tf32 ? round_to_tf32(x) : x;
}

}  // namespace fastmalade::cuda
