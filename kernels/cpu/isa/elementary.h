// tanh, the normal deviate of Box and Muller, and the vector Philox. Polynomials are fitted by tools/fit_elementary.py.
// Errors are stated in units in the last place (ulp) of the exact result and are checked by tests/backends/cpu.
#pragma once

#include "common/philox.h"
#include "cpu/isa/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

constexpr float kLn2High = 0.693359375f;       // 355/512: times an integer below 2^15 it is exact, with or without FMA
constexpr float kLn2Low = -2.12194440055e-4f;  // ln 2 - kLn2High

// tanh, odd to the bit, at most 6 ulp off with fused multiply-adds and 8 without, within [-1, 1]; NaN stays NaN.
// x p(x^2) / q(x^2): the two polynomials run side by side, which an exponential's long chain could not.
FASTMALADE_INLINE Vec tanh(Vec x) {
    x = at_least(at_most(x, 9.02f), -9.02f);  // beyond, the result rounds to 1
    const Vec s = x * x;
    Vec p = broadcast(1.33190508e-08f);
    Vec q = broadcast(7.76201034e-07f);
    p = fma(p, s, broadcast(2.0583464e-05f));
    q = fma(q, s, broadcast(0.000328309106f));
    p = fma(p, s, broadcast(0.00349403359f));
    q = fma(q, s, broadcast(0.0258710701f));
    p = fma(p, s, broadcast(0.133797169f));
    q = fma(q, s, broadcast(0.467130333f));
    p = fma(p, s, broadcast(1.0f));
    q = fma(q, s, broadcast(1.0f));
    return at_least(at_most(x * p / q, 1.0f), -1.0f);
}

// The nearest value within the bounds; NaN stays NaN.
FASTMALADE_INLINE Vec clamped(Vec v, float low, float high) { return at_most(at_least(v, low), high); }

// Natural logarithm of a normal positive float, at most 2 ulp off (relative also near 1).
FASTMALADE_INLINE Vec log_positive(Vec u) {
    // u = 2^k m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    const VecInt shifted = bits(u) - 0x3f3504f3;
    const VecInt exponent = shifted >> 23;
    const Vec f = from_bits(bits(u) - (exponent << 23)) - 1.0f;
    const Vec k = to_float(exponent);
    // Pairs, pairs of pairs (Estrin): a quarter of the latency of Horner's chain.
    const Vec f2 = f * f, f4 = f2 * f2;
    const Vec p01 = fma(broadcast(0.333333313f), f, broadcast(-0.5f));
    const Vec p23 = fma(broadcast(0.200012267f), f, broadcast(-0.250008225f));
    const Vec p45 = fma(broadcast(0.142017558f), f, broadcast(-0.166233569f));
    const Vec p67 = fma(broadcast(0.127615988f), f, broadcast(-0.13160187f));
    const Vec p47 = fma(fma(broadcast(-0.0763451084f), f2, p67), f2, p45);
    const Vec p = fma(p47, f4, fma(p23, f2, p01));
    const Vec tail = fma(f2, p, k * kLn2Low);
    return fma(k, broadcast(kLn2High), f + tail);
}

// Box and Muller's radius sqrt(-2 ln u) from one word.
FASTMALADE_INLINE Vec radius_of(VecWord word) {
    const Vec u = (to_float((VecInt)(word >> 9)) + 0.5f) * 0x1p-23f;
    return square_root(log_positive(u) * -2.0f);
}

// radius times cosine and sine of the angle 2 pi u of another word. The angle is split in the integers: quadrant, and r
// in [-1/2, 1/2] of a quarter turn, both exact.
FASTMALADE_INLINE void around_circle(Vec radius, VecWord word, Vec* cosine_part, Vec* sine_part) {
    const VecInt m = (VecInt)(word >> 9);
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

// The round keys of one seed as vectors, for operands in memory.
struct PhiloxKeys {
    VecLong round[kPhiloxRounds][2];

    static inline __attribute__((always_inline)) PhiloxKeys of(uint64_t seed) {
        PhiloxKeys keys;
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        for (int n = 0; n < kPhiloxRounds; ++n) {
            keys.round[n][0] = (uint64_t)key0 + (VecLong){};
            keys.round[n][1] = (uint64_t)key1 + (VecLong){};
            key0 += kPhiloxWeyl0;
            key1 += kPhiloxWeyl1;
        }
        return keys;
    }
};

// Philox4x32-10 on COUNT times kLanes counters, all under one key (common/philox.h has the scalar form and the
// contract). Even and odd words are kept apart in the low halves of 64-bit elements over all rounds: the multiplication
// reads low halves alone, so whatever gathers in the high halves is left there. A round waits for the one before it:
// with two vectors of counters the processor has other work meanwhile.
template <int COUNT>
FASTMALADE_INLINE void philox(WordVectors counters[COUNT], const PhiloxKeys& keys) {
    VecLong words[2 * COUNT][4];
#pragma GCC unroll 2
    for (int n = 0; n < COUNT; ++n) {
        for (int j = 0; j < 4; ++j) {
            words[2 * n][j] = (VecLong)counters[n].w[j];
            words[2 * n + 1][j] = (VecLong)counters[n].w[j] >> 32;
        }
    }
    const VecLong multiplier0 = kPhiloxMultiplier0 + (VecLong){}, multiplier1 = kPhiloxMultiplier1 + (VecLong){};
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
        for (int n = 0; n < 2 * COUNT; ++n) {
            VecLong* w = words[n];
            const VecLong product0 = multiply_low_halves(w[0], multiplier0);
            const VecLong product1 = multiply_low_halves(w[2], multiplier1);
            w[0] = (product1 >> 32) ^ (w[1] ^ keys.round[round][0]);
            w[1] = product1;
            w[2] = (product0 >> 32) ^ (w[3] ^ keys.round[round][1]);
            w[3] = product0;
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < COUNT; ++n) {
        for (int j = 0; j < 4; ++j) counters[n].w[j] = interleave_low_halves(words[2 * n][j], words[2 * n + 1][j]);
    }
}

// Elements 4k .. 4k+3 from the words of counter k, one sample or one k in each lane: radius and angle of two pairs.
// Both radii come first, so that one's long chain of operations runs beside the other's.
FASTMALADE_INLINE void box_muller(const WordVectors& words, Vec z[4]) {
    const Vec radius0 = radius_of(words.w[0]), radius1 = radius_of(words.w[2]);
    around_circle(radius0, words.w[1], &z[0], &z[1]);
    around_circle(radius1, words.w[3], &z[2], &z[3]);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
