// What the tensor-core form uses of a warp: products of small matrices, rounding to TF32, a shuffle between lanes.
// emulation/warp.h provides the same on the CPU. All lanes of a warp call each of them together.
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

// Nearest, ties away from zero. The manual leaves the 13 bits below TF32 open.
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

// The value of the lane whose number differs from this one's in the bits of `mask`.
FASTMALADE_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// No load moves across it. Without it, fragments of later taps are loaded before there are registers for them.
FASTMALADE_DEVICE void hold_loads() { __syncwarp(); }

// Tells the compiler that all lanes have the same value, so it knows that they branch together.
FASTMALADE_DEVICE int same_in_warp(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// out = A B + c. GPUs older than sm_80 have no such instruction; choose() refuses the form there.
FASTMALADE_DEVICE void multiply_add(float (&out)[4], float a0, float a1, float a2, float a3, float b0, float b1,
                                    float c0, float c1, float c2, float c3) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(out[0]), "=f"(out[1]), "=f"(out[2]), "=f"(out[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
#else
    __trap();
#endif
}

// The part (high or low) that the tensor cores take of an operand's four or two numbers.
template <float Operand<Precision::tf32x3>::* A, float Operand<Precision::tf32x3>::* B>
FASTMALADE_DEVICE void multiply_parts(float (&out)[4], const Operand<Precision::tf32x3> (&a)[4],
                                      const Operand<Precision::tf32x3> (&b)[2], float c0, float c1, float c2,
                                      float c3) {
    multiply_add(out, a[0].*A, a[1].*A, a[2].*A, a[3].*A, b[0].*B, b[1].*B, c0, c1, c2, c3);
}

// sum[m] += a[m] b for all blocks of 16 rows.
template <int TILES>
FASTMALADE_DEVICE void multiply_add(float (&sum)[TILES][4], const Operand<Precision::tf32> (&a)[TILES][4],
                                    const Operand<Precision::tf32> (&b)[2]) {
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        multiply_add(sum[m], a[m][0].value, a[m][1].value, a[m][2].value, a[m][3].value, b[0].value, b[1].value,
                     sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
    }
}

// The products of two low parts are below float32's last bit and are left out. Where tensor cores add they truncate, so
// a sum over many blocks of K would drift towards zero. So a block starts from zero, and float32 additions, which round
// to nearest, collect the blocks (Ootomo and Yokota, "Recovering single precision
// accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022).
template <int TILES>
FASTMALADE_DEVICE void multiply_add(float (&sum)[TILES][4], const Operand<Precision::tf32x3> (&a)[TILES][4],
                                    const Operand<Precision::tf32x3> (&b)[2]) {
    using Split = Operand<Precision::tf32x3>;
    float part[TILES][4];
    // Product by product over all tiles, so that an instruction does not wait for the one before it.
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        multiply_parts<&Split::low, &Split::high>(part[m], a[m], b, 0.0f, 0.0f, 0.0f, 0.0f);
    }
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        multiply_parts<&Split::high, &Split::low>(part[m], a[m], b, part[m][0], part[m][1], part[m][2], part[m][3]);
    }
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        multiply_parts<&Split::high, &Split::high>(part[m], a[m], b, part[m][0], part[m][1], part[m][2], part[m][3]);
    }
    FASTMALADE_UNROLL
    for (int m = 0; m < TILES; ++m) {
        FASTMALADE_UNROLL
        for (int e = 0; e < 4; ++e) sum[m][e] += part[m][e];
    }
}

// One block of K of a row of positions: position p multiplies the weights with column p + first, where there is one.
// sum: [position][16 rows], a: [16 rows], b: [column].
template <Precision PRECISION, int P, int TILES, int COLUMNS>
FASTMALADE_DEVICE void multiply_row(float (&sum)[P][TILES][4], const Operand<PRECISION> (&a)[TILES][4],
                                    const Operand<PRECISION> (&b)[COLUMNS][2], int first) {
    FASTMALADE_UNROLL
    for (int p = 0; p < P; ++p) {
        if (p + first >= 0 && p + first < COLUMNS) multiply_add(sum[p], a, b[p + first]);
    }
}

}  // namespace fastmalade::cuda
#endif

namespace fastmalade::cuda {

// x as two TF32 numbers (Dekker 1971): the upper 11 bits, rounded to nearest by float32's own addition, and what is
// left, rounded too. On GPUs this takes half the instructions of two conversions.
FASTMALADE_DEVICE Operand<Precision::tf32x3> split(float x) {
    const float shifted = x * 8193.0f;
    const float high = shifted - (shifted - x);
    const int rest = __float_as_int(x - high);
    return {high, __int_as_float((rest + 0x1000) & ~0x1fff)};
}

// x as an operand. For tf32 the stored planes and packed weights are rounded already.
template <Precision PRECISION>
FASTMALADE_DEVICE Operand<PRECISION> operand(float x) {
    if constexpr (PRECISION == Precision::tf32) {
        return {x};
    } else {
        return split(x);
    }
}

// A value as planes and packed weights hold it.
template <Precision PRECISION>
FASTMALADE_DEVICE float stored(float x) {
    return PRECISION == Precision::tf32 ? round_to_tf32(x) : x;
}

}  // namespace fastmalade::cuda
