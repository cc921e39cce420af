// tanh, the normal deviate of Box and Muller, and the vector Philox. Polynomials are fitted by tools/fit_elementary.py.
// Errors are stated in units in the last place (ulp) of the exact result and are checked by tests/kernels.
#pragma once

#include "common/philox.h"
#include "cpu/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

constexpr float LN2_HIGH = 0.693359375f;       // 355/512: times an integer below 2^15 it is exact, with or without FMA
constexpr float LN2_LOW = -2.12194440055e-4f;  // ln 2 - LN2_HIGH
constexpr float ROUND_TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits

// tanh, odd to the bit, at most 3 ulp off, within [-1, 1]; NaN stays NaN.
// tanh |x| = e / (e + 2) with e = exp(2|x|) - 1 = 2^k (exp(r) - 1) + (2^k - 1), 2|x| = k ln 2 + r: no cancellation
// anywhere on the axis, so that one formula serves small and large arguments.
FASTMALADE_INLINE Vec tanh(Vec x) {
    const VecInt sign = bits(x) & (int32_t)0x80000000;
    Vec magnitude = from_bits(bits(x) ^ sign);
    // Beyond 9.02 the result rounds to 1. The comparison is false for NaN, which therefore passes through.
    magnitude = select(magnitude > 9.02f, broadcast(9.02f), magnitude);
    const Vec doubled = magnitude + magnitude;
    const Vec shifted = fma(doubled, broadcast(1.44269504f), broadcast(ROUND_TO_INTEGER));
    const Vec k = shifted - ROUND_TO_INTEGER;
    const Vec r = fma(k, broadcast(-LN2_LOW), fma(k, broadcast(-LN2_HIGH), doubled));
    Vec p = broadcast(0.00138825225f);
    p = fma(p, r, broadcast(0.00836652145f));
    p = fma(p, r, broadcast(0.0416672006f));
    p = fma(p, r, broadcast(0.166665435f));
    p = fma(p, r, broadcast(0.49999997f));
    p = fma(r * r, p, r);
    const Vec power = from_bits((bits(shifted) << 23) + 0x3f800000);  // 2^k: the upper bits of `shifted` fall out
    const Vec e = fma(power, p, power - 1.0f);
    return from_bits(bits(e / (e + 2.0f)) | sign);
}

// Natural logarithm of a normal positive float, at most 2 ulp off (relative also near 1).
FASTMALADE_INLINE Vec log_positive(Vec u) {
    // u = 2^k m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    const VecInt shifted = bits(u) - 0x3f3504f3;
    const VecInt exponent = shifted >> 23;
    const Vec f = from_bits(bits(u) - (exponent << 23)) - 1.0f;
    const Vec k = to_float(exponent);
    Vec p = broadcast(-0.0763451084f);
    p = fma(p, f, broadcast(0.127615988f));
    p = fma(p, f, broadcast(-0.13160187f));
    p = fma(p, f, broadcast(0.142017558f));
    p = fma(p, f, broadcast(-0.166233569f));
    p = fma(p, f, broadcast(0.200012267f));
    p = fma(p, f, broadcast(-0.250008225f));
    p = fma(p, f, broadcast(0.333333313f));
    p = fma(p, f, broadcast(-0.5f));
    const Vec tail = fma(f * f, p, k * LN2_LOW);
    return fma(k, broadcast(LN2_HIGH), f + tail);
}

struct Normals {
    Vec z[4];  // elements 4k .. 4k+3, one sample or one k in each lane
};

// Box and Muller from two words: the radius from the first, the angle from the second.
FASTMALADE_INLINE void box_muller(VecWord radius_word, VecWord angle_word, Vec* cosine_part, Vec* sine_part) {
    const Vec u = (to_float((VecInt)(radius_word >> 9)) + 0.5f) * 0x1p-23f;
    const Vec radius = square_root(log_positive(u) * -2.0f);
    // The angle 2 pi u is split in the integers: quadrant, and r in [-1/2, 1/2] of a quarter turn, both exact.
    const VecInt m = (VecInt)(angle_word >> 9);
    const VecInt quadrant = (m + (1 << 20)) >> 21;
    const Vec r = (to_float(m - (quadrant << 21)) + 0.5f) * 0x1p-21f;
    const Vec s = r * r;
    Vec sine = broadcast(-0.00460164528f);
    sine = fma(sine, s, broadcast(0.0796800256f));
    sine = fma(sine, s, broadcast(-0.64596343f));
    sine = fma(sine, s, broadcast(1.57079637f)) * r;
    Vec cosine = broadcast(0.000903766486f);
    cosine = fma(cosine, s, broadcast(-0.0208601654f));
    cosine = fma(cosine, s, broadcast(0.253669232f));
    cosine = fma(cosine, s, broadcast(-1.23370051f));
    cosine = fma(cosine, s, broadcast(1.0f));
    const VecInt swapped = -(quadrant & 1);
    const VecInt cosine_sign = ((quadrant + 1) & 2) << 30;
    const VecInt sine_sign = (quadrant & 2) << 30;
    *cosine_part = radius * from_bits(bits(select(swapped, sine, cosine)) ^ cosine_sign);
    *sine_part = radius * from_bits(bits(select(swapped, cosine, sine)) ^ sine_sign);
}

struct WordVectors {
    VecWord w[4];
};

// Philox4x32-10 on LANES counters at once, all under one key (common/philox.h has the scalar form and the contract).
FASTMALADE_INLINE WordVectors philox(WordVectors counter, uint64_t seed) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        VecWord high0, low0, high1, low1;
        multiply_wide(counter.w[0], kPhiloxMultiplier0, &high0, &low0);
        multiply_wide(counter.w[2], kPhiloxMultiplier1, &high1, &low1);
        counter = WordVectors{{high1 ^ counter.w[1] ^ key0, low1, high0 ^ counter.w[3] ^ key1, low0}};
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
    return counter;
}

FASTMALADE_INLINE Normals normals(WordVectors counter, uint64_t seed) {
    const WordVectors words = philox(counter, seed);
    Normals n;
    box_muller(words.w[0], words.w[1], &n.z[0], &n.z[1]);
    box_muller(words.w[2], words.w[3], &n.z[2], &n.z[3]);
    return n;
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
