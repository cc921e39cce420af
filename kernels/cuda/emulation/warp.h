// The CPU's stand-in for what tensor_core.cuh uses of a warp. Lanes put down their operands, meet, and each computes
// its own part of the product from the operands of all.
//
// Rounding to TF32 is exact to the bit. How a tensor core adds is not documented. The model is what was measured on
// V100 to A100 (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021), where
// generations differ with the larger error: four exact products and the accumulator are truncated one bit below the
// last bit of the largest of them, and their sum is truncated to float32.
#pragma once

#include <math.h>
#include <string.h>

#include "cuda/emulation/mailbox.h"

#if defined(FASTMALADE_EMULATION_THREADS)
#define FASTMALADE_UNSEEN __attribute__((noinline, no_sanitize("thread")))
#else
#define FASTMALADE_UNSEEN
#endif

namespace fastmalade::cuda {

inline float round_to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7f800000u) != 0x7f800000u) {
        bits = (bits + 0x1000u) & 0xffffe000u;
    } else if (bits & 0x7fffffu) {
        bits = 0x7fffe000u;
    }
    memcpy(&x, &bits, sizeof x);
    return x;
}

namespace emulation {

// c + sum of four products of TF32 numbers, which double holds exactly.
inline float add_four(float c, const float* a, const float* b) {
    double terms[5] = {c}, largest = fabs((double)c), plain = c;
    for (int n = 0; n < 4; ++n) {
        const double product = (double)a[n] * b[n];
        terms[n + 1] = product;
        plain += product;
        largest = largest > fabs(product) ? largest : fabs(product);
    }
    if (!(largest < INFINITY) || !(fabs(plain) < INFINITY) || largest < 0x1p-100) return (float)plain;
    // 2^k with k the exponent of the largest, from its bits: 24 bits stay below the point.
    uint64_t bits;
    memcpy(&bits, &largest, sizeof bits);
    bits &= 0x7ff0000000000000ull;
    double unit;
    memcpy(&unit, &bits, sizeof unit);
    const double scale = 0x1p24 / unit;
    int64_t sum = 0;
    for (const double term : terms) sum += (int64_t)(term * scale);
    const double exact = (double)sum / scale;
    const float nearest = (float)exact;
    return fabs((double)nearest) > fabs(exact) ? nextafterf(nearest, 0.0f) : nearest;
}

inline float add_eight(float c, const float (&a)[8], const float (&b)[8]) {
    return add_four(add_four(c, a, b), a + 4, b + 4);
}

FASTMALADE_UNSEEN inline void put_down(const void* a, int a_words, const void* b, int b_words) {
    float* mine = self->warp->words[self->meetings % 2][self->thread.x % kLanes];
    memcpy(mine, a, sizeof(float) * (size_t)a_words);
    memcpy(mine + a_words, b, sizeof(float) * (size_t)b_words);
}

// Word `word` of another lane at the meeting that has just been.
FASTMALADE_UNSEEN inline float of_lane(int lane, int word) { return self->warp->words[self->meetings % 2][lane][word]; }

inline void meet_warp() { wait(Scope::warp); }

}  // namespace emulation

inline void hold_loads() {}  // concerns the registers of a GPU only

inline int same_in_warp(int value) { return value; }

inline float shuffle_xor(float value, int mask) {
    using namespace emulation;
    put_down(&value, 1, nullptr, 0);
    meet_warp();
    const float other = of_lane((self->thread.x % kLanes) ^ mask, 0);
    ++self->meetings;
    return other;
}

template <Precision PRECISION, int P, int TILES, int COLUMNS>
inline void multiply_row(float (&sum)[P][TILES][4], const Operand<PRECISION> (&a)[TILES][4],
                         const Operand<PRECISION> (&b)[COLUMNS][2], int first) {
    using namespace emulation;
    constexpr int PARTS = sizeof(Operand<PRECISION>) / sizeof(float), A_WORDS = TILES * 4 * PARTS;
    static_assert(A_WORDS + COLUMNS * 2 * PARTS <= kLaneWords);
    put_down(a, A_WORDS, b, COLUMNS * 2 * PARTS);
    meet_warp();
    const int lane = self->thread.x % kLanes, g = lane / 4, t = lane % 4;
    // Rows of A and columns of B by the tables of tensor_core.cuh; part: 0, or the low part 1.
    const auto row = [&](int m, int half, int part, float (&out)[8]) {
        for (int k = 0; k < 8; ++k) out[k] = of_lane(4 * g + k % 4, (m * 4 + half + 2 * (k / 4)) * PARTS + part);
    };
    const auto column = [&](int x, int n, int part, float (&out)[8]) {
        for (int k = 0; k < 8; ++k) out[k] = of_lane(4 * n + k % 4, A_WORDS + (x * 2 + k / 4) * PARTS + part);
    };
    float rows[TILES][2][PARTS][8], columns[2][PARTS][8];
    for (int m = 0; m < TILES; ++m) {
        for (int half = 0; half < 2; ++half) {
            for (int part = 0; part < PARTS; ++part) row(m, half, part, rows[m][half][part]);
        }
    }
    for (int p = 0; p < P; ++p) {
        const int x = p + first;
        if (x < 0 || x >= COLUMNS) continue;
        for (int n = 0; n < 2; ++n) {
            for (int part = 0; part < PARTS; ++part) column(x, 2 * t + n, part, columns[n][part]);
        }
        for (int m = 0; m < TILES; ++m) {
            for (int e = 0; e < 4; ++e) {
                const auto& w = rows[m][e / 2];
                const auto& v = columns[e % 2];
                float& total = sum[p][m][e];
                if constexpr (PRECISION == Precision::tf32) {
                    total = add_eight(total, w[0], v[0]);
                } else {
                    total += add_eight(add_eight(add_eight(0.0f, w[1], v[0]), w[0], v[1]), w[0], v[0]);
                }
            }
        }
    }
    ++self->meetings;
}

}  // namespace fastmalade::cuda
