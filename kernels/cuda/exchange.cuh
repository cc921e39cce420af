// Several blocks for one group of images without clusters: state and activations lie in device memory, where they stay
// in the L2 cache, and a barrier of the blocks of a group orders what they store and read. To the layers such a group
// is one large block. All blocks of a launch must be at work at once (a cooperative launch), or a barrier would wait
// for ever.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/shapes.cuh"

namespace fastmalade::cuda {

constexpr int kLineFloats = 32;  // 128 bytes: counters of different groups do not share a cache line

// Memory of `slots` groups at a time: a line with the counter of each, all zero at first, then the planes of each.
FASTMALADE_BOTH constexpr int exchange_floats(int slots, int plan_floats) {
    return slots * (kLineFloats + round_up(plan_floats, kLineFloats));
}

#if !defined(FASTMALADE_HOST_ONLY)

// The blocks of a group; planes are of all of them, so that what one finds is stored once.
struct DevicePeers {
    static constexpr bool is_alone = false, has_own_memory = false;
    uint32_t* arrived;  // of the group; 0 before the first launch of a call
    int own_rank, blocks;

    FASTMALADE_DEVICE int rank() const { return own_rank; }
    FASTMALADE_DEVICE int size() const { return blocks; }
    FASTMALADE_DEVICE void put(float* place, float value) const { *place = value; }
    template <int STAGE>
    FASTMALADE_DEVICE void sync() const {
#if defined(FASTMALADE_EMULATION)
        if (emulation::omitted_barrier == STAGE) return;
#endif
        __syncthreads();
        if (threadIdx.x == 0) {
            // The arrivals of a round add up to 2^31: its last one turns the highest bit, and no other does. The rest
            // is then zero again, so nothing has to be reset, and no length of a chain makes it overflow. What the
            // block has stored is behind its barrier and goes out with the arrival.
            const uint32_t all = 1u << 31, share = own_rank == 0 ? all - (uint32_t)(blocks - 1) : 1u;
            const uint32_t before = count_arrival(arrived, share);
            while (((read_arrivals(arrived) ^ before) & all) == 0) let_others_arrive();
        }
        __syncthreads();
    }
};

// Where the group of this block finds its planes and its counter.
struct ExchangeSlot {
    float* planes;
    DevicePeers peers;
    // memory: exchange_floats(gridDim.x / blocks, plan_floats); blocks: of a group
    FASTMALADE_DEVICE ExchangeSlot(float* memory, int blocks, int plan_floats) {
        const int slots = gridDim.x / blocks, slot = blockIdx.x / blocks;
        planes = memory + slots * kLineFloats + slot * round_up(plan_floats, kLineFloats);
        peers = DevicePeers{reinterpret_cast<uint32_t*>(memory + slot * kLineFloats), (int)blockIdx.x % blocks, blocks};
    }
};

#endif

}  // namespace fastmalade::cuda
