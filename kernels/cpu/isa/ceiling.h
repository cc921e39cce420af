// The highest rate of multiply-adds that one core reaches with this instruction set, to compare a kernel's rate with.
#pragma once

#include "cpu/isa/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Independent sums: processors of the last decade take up to 5 cycles for a multiply-add and start two a cycle, plain
// SSE takes up to 8 for the multiplication and the addition after it. Fourteen sums and two factors fill 16 registers.
int64_t multiply_adds(int64_t rounds, float* sink) {
    constexpr int sums = 14, unrolled = 8;
    // v <- v a + b tends to 2 from anywhere: no overflow, no denormal numbers. Sums and factors come from memory that
    // the compiler may not look through, so that it can neither compute nor merge them.
    volatile float start[sums + 2] = {1.0f, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f,  1.7f,
                                      1.8f, 1.9f, 2.0f, 2.1f, 2.2f, 2.3f, 0.75f, 0.5f};
    const Vec a = broadcast(start[sums]), b = broadcast(start[sums + 1]);
    Vec v[sums];
#pragma GCC unroll 14
    for (int n = 0; n < sums; ++n) v[n] = broadcast(start[n]);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
        for (int repeat = 0; repeat < unrolled; ++repeat) {
#pragma GCC unroll 14
            for (int n = 0; n < sums; ++n) v[n] = fma(v[n], a, b);
        }
    }
    Vec sum = {};
#pragma GCC unroll 14
    for (int n = 0; n < sums; ++n) sum += v[n];
    *sink = sum[0];
    return rounds * unrolled * sums * kLanes * 2;
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
