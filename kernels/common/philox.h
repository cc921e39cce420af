// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one counter
// at a time. Vector forms of it live with their backend and are tested to give the same words.
//
// The counter of a word is a contract between all backends: (element / 4, step, sample id low, sample id high), the
// key is the seed (low, high). The four words of one counter belong to elements 4k .. 4k+3, counted over C x H x W.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define FASTMALADE_HOST_DEVICE __host__ __device__ __forceinline__
#else
// `static` keeps the function out of the symbol table: the per-instruction-set objects must not offer the linker a
// copy compiled with instructions that another object's caller may lack.
#define FASTMALADE_HOST_DEVICE static inline
#endif

namespace fastmalade {

struct PhiloxWords {
    uint32_t w[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

FASTMALADE_HOST_DEVICE PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t product0 = (uint64_t)kPhiloxMultiplier0 * counter.w[0];
        const uint64_t product1 = (uint64_t)kPhiloxMultiplier1 * counter.w[2];
        counter = PhiloxWords{{(uint32_t)(product1 >> 32) ^ counter.w[1] ^ key0, (uint32_t)product1,
                               (uint32_t)(product0 >> 32) ^ counter.w[3] ^ key1, (uint32_t)product0}};
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
    }
    return counter;
}

// u(w) = ((w >> 9) + 0.5) 2^-23: exact in float32, never 0 and never 1.
FASTMALADE_HOST_DEVICE float philox_uniform(uint32_t word) { return ((float)(word >> 9) + 0.5f) * 0x1p-23f; }

}  // namespace fastmalade
