// Residual, Langevin update, noise and clamp in one pass over memory, for models whose forward runs elsewhere.
#pragma once

#include "cpu/kernels.h"
#include "cpu/noise.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// From one counter per lane to the order of memory: vector m of the result holds elements m LANES .. m LANES + LANES-1
// of the 4 LANES elements that the LANES counters give (element 4 l + j is n.z[j][l]).
FASTMALADE_INLINE Normals in_memory_order(const Normals& n) {
    Normals ordered;
#if defined(__AVX512F__) && FASTMALADE_LANES == 16
    const __m512 a = (__m512)n.z[0], b = (__m512)n.z[1], c = (__m512)n.z[2], d = (__m512)n.z[3];
    // The masked forms with a full mask: the plain ones are written with an undefined operand in some compilers' headers.
    const __mmask16 all = 0xffff;
    const __m512 ab_low = _mm512_maskz_unpacklo_ps(all, a, b), ab_high = _mm512_maskz_unpackhi_ps(all, a, b);
    const __m512 cd_low = _mm512_maskz_unpacklo_ps(all, c, d), cd_high = _mm512_maskz_unpackhi_ps(all, c, d);
    // Quarter q of row i: counter 4q + i.
    const __m512 row0 = _mm512_maskz_shuffle_ps(all, ab_low, cd_low, 0x44);
    const __m512 row1 = _mm512_maskz_shuffle_ps(all, ab_low, cd_low, 0xee);
    const __m512 row2 = _mm512_maskz_shuffle_ps(all, ab_high, cd_high, 0x44);
    const __m512 row3 = _mm512_maskz_shuffle_ps(all, ab_high, cd_high, 0xee);
    // The 4 x 4 transposition of the quarters.
    const __m512 low01 = _mm512_maskz_shuffle_f32x4(all, row0, row1, 0x44);
    const __m512 high01 = _mm512_maskz_shuffle_f32x4(all, row0, row1, 0xee);
    const __m512 low23 = _mm512_maskz_shuffle_f32x4(all, row2, row3, 0x44);
    const __m512 high23 = _mm512_maskz_shuffle_f32x4(all, row2, row3, 0xee);
    ordered.z[0] = (Vec)_mm512_maskz_shuffle_f32x4(all, low01, low23, 0x88);
    ordered.z[1] = (Vec)_mm512_maskz_shuffle_f32x4(all, low01, low23, 0xdd);
    ordered.z[2] = (Vec)_mm512_maskz_shuffle_f32x4(all, high01, high23, 0x88);
    ordered.z[3] = (Vec)_mm512_maskz_shuffle_f32x4(all, high01, high23, 0xdd);
#elif defined(__AVX__) && FASTMALADE_LANES == 8
    const __m256 a = (__m256)n.z[0], b = (__m256)n.z[1], c = (__m256)n.z[2], d = (__m256)n.z[3];
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    // Half h of row i: counter 4h + i.
    const __m256 row0 = _mm256_shuffle_ps(ab_low, cd_low, 0x44), row1 = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    const __m256 row2 = _mm256_shuffle_ps(ab_high, cd_high, 0x44), row3 = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
    ordered.z[0] = (Vec)_mm256_permute2f128_ps(row0, row1, 0x20);
    ordered.z[1] = (Vec)_mm256_permute2f128_ps(row2, row3, 0x20);
    ordered.z[2] = (Vec)_mm256_permute2f128_ps(row0, row1, 0x31);
    ordered.z[3] = (Vec)_mm256_permute2f128_ps(row2, row3, 0x31);
#elif defined(__SSE2__) && FASTMALADE_LANES == 4
    const __m128 a = (__m128)n.z[0], b = (__m128)n.z[1], c = (__m128)n.z[2], d = (__m128)n.z[3];
    const __m128 ab_low = _mm_unpacklo_ps(a, b), ab_high = _mm_unpackhi_ps(a, b);
    const __m128 cd_low = _mm_unpacklo_ps(c, d), cd_high = _mm_unpackhi_ps(c, d);
    ordered.z[0] = (Vec)_mm_movelh_ps(ab_low, cd_low);
    ordered.z[1] = (Vec)_mm_movehl_ps(cd_low, ab_low);
    ordered.z[2] = (Vec)_mm_movelh_ps(ab_high, cd_high);
    ordered.z[3] = (Vec)_mm_movehl_ps(cd_high, ab_high);
#else
    for (int m = 0; m < 4; ++m) {
        for (int i = 0; i < LANES; ++i) ordered.z[m][i] = n.z[i % 4][(m * LANES + i) / 4];
    }
#endif
    return ordered;
}

// The same arithmetic as the last stage of the chain (cpu/tail.h). Comparisons are false for NaN, which stays NaN.
FASTMALADE_INLINE Vec updated_element(Vec x, Vec r, const UpdateArguments& u) {
    return fma(broadcast(u.step_size), r - x, x);
}

FASTMALADE_INLINE Vec clamped_element(Vec v, const UpdateArguments& u) {
    const Vec low = broadcast(u.low), high = broadcast(u.high);
    v = select(v < low, low, v);
    return select(v > high, high, v);
}

// Elements n .. n+LANES-1 with their noise, or the `left` first of them.
template <bool NOISY>
FASTMALADE_INLINE void update_vector(const UpdateArguments& u, int64_t n, int64_t left, Vec z) {
    Vec v = updated_element(load_some(u.x + n, left), load_some(u.reconstruction + n, left), u);
    if (NOISY) v = fma(broadcast(u.noise_scale), z, v);
    store_some(u.out + n, clamped_element(v, u), left);
}

void langevin_update(const UpdateArguments& u, int64_t image, int64_t first, int64_t count) {
    const int64_t begin = image * u.elements + first;
    if (u.noise_scale == 0.0f) {
        for (int64_t n = 0; n < count; n += LANES) update_vector<false>(u, begin + n, count - n, Vec{});
    } else if (u.noise) {
        for (int64_t n = 0; n < count; n += LANES) {
            update_vector<true>(u, begin + n, count - n, load_some(u.noise + begin + n, count - n));
        }
    } else {
        const uint64_t id = (uint64_t)u.sample_ids[image];
        for (int64_t n = 0; n < count; n += 4 * LANES) {
            const Normals z = in_memory_order(normals(counters_of_sample((first + n) / 4, u.step, id), u.seed));
            for (int m = 0; m < 4; ++m) {
                const int64_t at = n + m * LANES;
                if (at < count) update_vector<true>(u, begin + at, count - at, z.z[m]);
            }
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
