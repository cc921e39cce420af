// The vector type of one instruction set: kLanes floats, written with the compiler's vector extensions so that +, -, *,
// comparisons and selections need no intrinsics. FASTMALADE_ISA, given by the build, names the namespace of everything
// in isa/.
//
// Everything in isa/ is `static` or in an unnamed namespace, and no standard C++ header is included: an object compiled
// with -mavx2 must not define a weak symbol, or the linker might hand its copy to the portable code.
// tools/check_layout.py and tools/check_native.py watch over it.
#pragma once

#include <stdint.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef FASTMALADE_ISA
#error "FASTMALADE_ISA names the namespace of this instruction set: baseline, avx2, avx512, ..."
#endif

// Test builds that run the wide code on a narrow processor give FASTMALADE_LANES themselves.
#ifndef FASTMALADE_LANES
#if defined(__AVX512F__)
#define FASTMALADE_LANES 16
#elif defined(__AVX2__)
#define FASTMALADE_LANES 8
#else
#define FASTMALADE_LANES 4
#endif
#endif

#define FASTMALADE_INLINE static inline __attribute__((always_inline))
#define FASTMALADE_NOINLINE __attribute__((noinline))

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

constexpr int kLanes = FASTMALADE_LANES;

// Architectural vector registers: they decide how large an output tile may be before it spills.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(FASTMALADE_LANES * 4)));
typedef int32_t VecInt __attribute__((vector_size(FASTMALADE_LANES * 4)));
typedef uint32_t VecWord __attribute__((vector_size(FASTMALADE_LANES * 4)));
typedef uint64_t VecLong __attribute__((vector_size(FASTMALADE_LANES * 4)));
// The same vectors at any float's address.
typedef float VecAt __attribute__((vector_size(FASTMALADE_LANES * 4), aligned(4), may_alias));

FASTMALADE_INLINE Vec load(const float* p) { return *(const VecAt*)p; }
FASTMALADE_INLINE void store(float* p, Vec v) { *(VecAt*)p = v; }
FASTMALADE_INLINE Vec broadcast(float s) { return s - (Vec){}; }
FASTMALADE_INLINE VecInt broadcast_int(int32_t s) { return s + (VecInt){}; }
FASTMALADE_INLINE VecWord broadcast_word(uint32_t s) { return s + (VecWord){}; }

FASTMALADE_INLINE VecInt bits(Vec v) { return (VecInt)v; }
FASTMALADE_INLINE Vec from_bits(VecInt v) { return (Vec)v; }
FASTMALADE_INLINE Vec to_float(VecInt v) { return __builtin_convertvector(v, Vec); }
FASTMALADE_INLINE Vec select(VecInt mask, Vec where_set, Vec where_clear) { return mask ? where_set : where_clear; }

// The bound where v is beyond it, else v; NaN stays NaN.
FASTMALADE_INLINE Vec at_most(Vec v, float bound) {
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (Vec)_mm512_maskz_min_ps(0xffff, (__m512)broadcast(bound), (__m512)v);
#elif defined(__AVX__) && FASTMALADE_LANES == 8
    return (Vec)_mm256_min_ps((__m256)broadcast(bound), (__m256)v);
#elif defined(__SSE2__) && FASTMALADE_LANES == 4
    return (Vec)_mm_min_ps((__m128)broadcast(bound), (__m128)v);
#else
    return select(v > bound, broadcast(bound), v);
#endif
}

FASTMALADE_INLINE Vec at_least(Vec v, float bound) {
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (Vec)_mm512_maskz_max_ps(0xffff, (__m512)broadcast(bound), (__m512)v);
#elif defined(__AVX__) && FASTMALADE_LANES == 8
    return (Vec)_mm256_max_ps((__m256)broadcast(bound), (__m256)v);
#elif defined(__SSE2__) && FASTMALADE_LANES == 4
    return (Vec)_mm_max_ps((__m128)broadcast(bound), (__m128)v);
#else
    return select(v < bound, broadcast(bound), v);
#endif
}

FASTMALADE_INLINE VecInt lane_indices() {
    VecInt v;
    for (int l = 0; l < kLanes; ++l) v[l] = l;
    return v;
}

// Lane l of rows[k] becomes lane k of rows[l].
FASTMALADE_INLINE void transpose(Vec rows[kLanes]) {
#if (defined(__AVX512F__) && FASTMALADE_LANES == 16) || (defined(__AVX2__) && FASTMALADE_LANES == 8)
    // Inside each 128-bit quarter or half, 4 x 4 blocks are transposed; then the blocks change places.
#pragma GCC unroll 4
    for (int k = 0; k < kLanes; k += 4) {
#if FASTMALADE_LANES == 16
        const __m512 r0 = (__m512)rows[k], r1 = (__m512)rows[k + 1], r2 = (__m512)rows[k + 2], r3 = (__m512)rows[k + 3];
        const __m512 a = _mm512_maskz_unpacklo_ps(0xffff, r0, r1), b = _mm512_maskz_unpackhi_ps(0xffff, r0, r1);
        const __m512 c = _mm512_maskz_unpacklo_ps(0xffff, r2, r3), d = _mm512_maskz_unpackhi_ps(0xffff, r2, r3);
        rows[k] = (Vec)_mm512_maskz_shuffle_ps(0xffff, a, c, 0x44);
        rows[k + 1] = (Vec)_mm512_maskz_shuffle_ps(0xffff, a, c, 0xee);
        rows[k + 2] = (Vec)_mm512_maskz_shuffle_ps(0xffff, b, d, 0x44);
        rows[k + 3] = (Vec)_mm512_maskz_shuffle_ps(0xffff, b, d, 0xee);
#else
        const __m256 r0 = (__m256)rows[k], r1 = (__m256)rows[k + 1], r2 = (__m256)rows[k + 2], r3 = (__m256)rows[k + 3];
        const __m256 a = _mm256_unpacklo_ps(r0, r1), b = _mm256_unpackhi_ps(r0, r1);
        const __m256 c = _mm256_unpacklo_ps(r2, r3), d = _mm256_unpackhi_ps(r2, r3);
        rows[k] = (Vec)_mm256_shuffle_ps(a, c, 0x44);
        rows[k + 1] = (Vec)_mm256_shuffle_ps(a, c, 0xee);
        rows[k + 2] = (Vec)_mm256_shuffle_ps(b, d, 0x44);
        rows[k + 3] = (Vec)_mm256_shuffle_ps(b, d, 0xee);
#endif
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
#if FASTMALADE_LANES == 16
        const __m512 r0 = (__m512)rows[k], r1 = (__m512)rows[k + 4], r2 = (__m512)rows[k + 8],
                     r3 = (__m512)rows[k + 12];
        const __m512 a = _mm512_maskz_shuffle_f32x4(0xffff, r0, r1, 0x88);  // blocks 0, 2 of both
        const __m512 b = _mm512_maskz_shuffle_f32x4(0xffff, r0, r1, 0xdd);  // blocks 1, 3
        const __m512 c = _mm512_maskz_shuffle_f32x4(0xffff, r2, r3, 0x88);
        const __m512 d = _mm512_maskz_shuffle_f32x4(0xffff, r2, r3, 0xdd);
        rows[k] = (Vec)_mm512_maskz_shuffle_f32x4(0xffff, a, c, 0x88);
        rows[k + 8] = (Vec)_mm512_maskz_shuffle_f32x4(0xffff, a, c, 0xdd);
        rows[k + 4] = (Vec)_mm512_maskz_shuffle_f32x4(0xffff, b, d, 0x88);
        rows[k + 12] = (Vec)_mm512_maskz_shuffle_f32x4(0xffff, b, d, 0xdd);
#else
        const __m256 upper = (__m256)rows[k], lower = (__m256)rows[k + 4];
        rows[k] = (Vec)_mm256_permute2f128_ps(upper, lower, 0x20);
        rows[k + 4] = (Vec)_mm256_permute2f128_ps(upper, lower, 0x31);
#endif
    }
#else
    float square[kLanes * kLanes], column[kLanes];
    for (int k = 0; k < kLanes; ++k) store(square + k * kLanes, rows[k]);
    for (int l = 0; l < kLanes; ++l) {
        for (int k = 0; k < kLanes; ++k) column[k] = square[k * kLanes + l];
        rows[l] = load(column);
    }
#endif
}

typedef float FourAt __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint64_t TwoAt __attribute__((aligned(4), may_alias));

// p[0] .. p[COUNT-1] over and over, once for each of four images.
template <int COUNT>
FASTMALADE_INLINE Vec repeat(const float* p) {
    static_assert(4 * COUNT == kLanes, "written for four images");
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (Vec)_mm512_maskz_broadcast_f32x4(0xffff, (__m128) * (const FourAt*)p);
#elif FASTMALADE_LANES == 16
    const FourAt four = *(const FourAt*)p;
    return __builtin_shufflevector(four, four, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
#else
    return (Vec)(*(const TwoAt*)p + (VecLong){});
#endif
}

// Of every COUNT lanes the first, in all of them.
template <int COUNT>
FASTMALADE_INLINE Vec first_of_each(Vec v) {
    static_assert(4 * COUNT == kLanes, "written for four images");
#if FASTMALADE_LANES == 16
    return __builtin_shufflevector(v, v, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
#elif FASTMALADE_LANES == 8
    return __builtin_shufflevector(v, v, 0, 0, 2, 2, 4, 4, 6, 6);
#else
    return v;
#endif
}

// even[0], odd[0], even[1], odd[1], ... as two vectors.
FASTMALADE_INLINE void interleave(Vec even, Vec odd, Vec pair[2]) {
#if FASTMALADE_LANES == 16
    pair[0] = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    pair[1] = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif FASTMALADE_LANES == 8
    pair[0] = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    pair[1] = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    pair[0] = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
    pair[1] = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
#endif
}

// The numbers at even and at odd places of two vectors: what `interleave` was given.
FASTMALADE_INLINE void separate(Vec first, Vec second, Vec* even, Vec* odd) {
#if FASTMALADE_LANES == 16
    *even = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *odd = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif FASTMALADE_LANES == 8
    *even = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14);
    *odd = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    *even = __builtin_shufflevector(first, second, 0, 2, 4, 6);
    *odd = __builtin_shufflevector(first, second, 1, 3, 5, 7);
#endif
}

// Lane l of rows[j] becomes number 4 l + j of the four vectors taken together.
FASTMALADE_INLINE void interleave_four(const Vec rows[4], Vec run[4]) {
    Vec even[2], odd[2];
    interleave(rows[0], rows[2], even);
    interleave(rows[1], rows[3], odd);
    interleave(even[0], odd[0], run);
    interleave(even[1], odd[1], run + 2);
}

// The first `count` of kLanes floats, the other lanes zero.
FASTMALADE_INLINE Vec load_some(const float* p, int64_t count) {
    if (count >= kLanes) return load(p);
    float lanes[kLanes] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = p[l];
    return load(lanes);
}

FASTMALADE_INLINE void store_some(float* p, Vec v, int64_t count) {
    if (count >= kLanes) return store(p, v);
    float lanes[kLanes];
    store(lanes, v);
    for (int64_t l = 0; l < count; ++l) p[l] = lanes[l];
}

// The vectors that hold the first `floats` numbers of a run of them; the last one is stored whole.
FASTMALADE_INLINE void store_run(float* p, const Vec* run, int64_t vectors, int64_t floats) {
#pragma GCC unroll 4
    for (int64_t n = 0; n < vectors; ++n) {
        if (n * kLanes < floats) store(p + n * kLanes, run[n]);
    }
}

// a b + c: rounded once where the instruction set has a fused multiply-add, twice on plain x86-64. The build switches
// contraction off, so no other expression is ever fused.
FASTMALADE_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && FASTMALADE_LANES == 8
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) && FASTMALADE_LANES == 16
    union Halves {
        Vec whole;
        __m256 half[2];
    };
    const Halves x = {a}, y = {b}, z = {c};
    Halves sum;
    sum.half[0] = _mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]);
    sum.half[1] = _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]);
    return sum.whole;
#elif defined(__FMA__)
    return (Vec)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__ARM_FEATURE_FMA) && FASTMALADE_LANES == 4
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

FASTMALADE_INLINE Vec square_root(Vec v) {
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif defined(__AVX__) && FASTMALADE_LANES == 8
    return (Vec)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__) && FASTMALADE_LANES == 4
    return (Vec)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__) && FASTMALADE_LANES == 4
    return (Vec)vsqrtq_f32((float32x4_t)v);
#else
    Vec root;
    for (int l = 0; l < kLanes; ++l) root[l] = __builtin_sqrtf(v[l]);
    return root;
#endif
}

// Product of the low halves of each 64-bit element: the 32 x 32 -> 64 bit multiplication.
FASTMALADE_INLINE VecLong multiply_low_halves(VecLong a, VecLong b) {
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    return (VecLong)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && FASTMALADE_LANES == 8
    return (VecLong)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && FASTMALADE_LANES == 4
    return (VecLong)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}

// Low halves of `even` and `odd`, each element of `odd` after its neighbour in `even`: little-endian, so that word 2i
// is the low half of 64-bit element i.
FASTMALADE_INLINE VecWord interleave_low_halves(VecLong even, VecLong odd) {
    return (VecWord)((even & 0xffffffffull) | (odd << 32));
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
