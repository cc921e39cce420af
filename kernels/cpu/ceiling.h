// The most multiply-adds that this instruction set does on one core: what a kernel's rate is to be compared with.
#pragma once

#include "cpu/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Ten independent sums: processors of the last decade take 4 or 5 cycles for a multiply-add and start two a cycle, and
// ten sums and the two factors still fit into 16 registers.
int64_t multiply_adds(int64_t rounds, float* sink) {
    constexpr int SUMS = 10, UNROLLED = 8;
    // v <- v a + b tends to 2 from anywhere: no overflow, no denormal numbers. The sums start from memory and differ, so
    // that the compiler can neither compute them nor merge them.
    volatile float start[SUMS + 2] = {1.0f, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f, 1.8f, 1.9f, 0.75f, 0.5f};
    const Vec a = broadcast(start[SUMS]), b = broadcast(start[SUMS + 1]);
    Vec v0 = broadcast(start[0]), v1 = broadcast(start[1]), v2 = broadcast(start[2]), v3 = broadcast(start[3]);
    Vec v4 = broadcast(start[4]), v5 = broadcast(start[5]), v6 = broadcast(start[6]), v7 = broadcast(start[7]);
    Vec v8 = broadcast(start[8]), v9 = broadcast(start[9]);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
        for (int n = 0; n < UNROLLED; ++n) {
            v0 = fma(v0, a, b), v1 = fma(v1, a, b), v2 = fma(v2, a, b), v3 = fma(v3, a, b), v4 = fma(v4, a, b);
            v5 = fma(v5, a, b), v6 = fma(v6, a, b), v7 = fma(v7, a, b), v8 = fma(v8, a, b), v9 = fma(v9, a, b);
        }
    }
    const Vec sum = v0 + v1 + v2 + v3 + v4 + v5 + v6 + v7 + v8 + v9;
    *sink = sum[0];
    return rounds * UNROLLED * SUMS * LANES * 2;
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
