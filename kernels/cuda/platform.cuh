// What the kernels use of the machine, in one place: the same kernel source is compiled by nvcc for a GPU, and by a C++
// compiler against emulation/emulation.h, where every CUDA thread is run on the CPU.
//
// Beside threadIdx, blockIdx and __syncthreads the kernels use the functions below and those of tensor_core.cuh and
// nothing else, so what has to be emulated is what is listed there.
#pragma once

#include <stdint.h>

#include "common/layout.h"
#include "common/philox.h"

#if defined(FASTMALADE_HOST_ONLY)
// The sizes of shapes.cuh alone, for code that runs on the CPU.
#define FASTMALADE_BOTH inline
#elif defined(FASTMALADE_EMULATION)
#include "cuda/emulation/emulation.h"
#define FASTMALADE_GRID_CONSTANT
#define FASTMALADE_UNROLL
#define FASTMALADE_NO_UNROLL
#else
#include <cuda_runtime.h>
#define FASTMALADE_DEVICE __device__ __forceinline__
#define FASTMALADE_BOTH __host__ __device__ __forceinline__
#define FASTMALADE_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define FASTMALADE_GRID_CONSTANT __grid_constant__
#define FASTMALADE_UNROLL _Pragma("unroll")
#define FASTMALADE_NO_UNROLL _Pragma("unroll 1")

namespace fastmalade::cuda {

// Dynamic shared memory of this block, 16-byte aligned.
FASTMALADE_DEVICE float* block_memory() {
    extern __shared__ float4 fastmalade_block_memory[];
    return reinterpret_cast<float*>(fastmalade_block_memory);
}

// Thread-block clusters exist from sm_90 on. The host launches kernels with more than one block per image there only.
FASTMALADE_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
#else
    return 0;
#endif
}

FASTMALADE_DEVICE int cluster_size() {
#if __CUDA_ARCH__ >= 900
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return (int)size;
#else
    return 1;
#endif
}

// Every thread of every block of the cluster; what was stored before, here or in another block, is seen after.
FASTMALADE_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// A counter in device memory on which the blocks of a launch meet; returns what it was before. What this thread, and
// before a barrier its block, has stored is seen by whoever reads the new count; what others stored before they arrived
// is seen after reading it.
FASTMALADE_DEVICE uint32_t count_arrival(uint32_t* counter, uint32_t share) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(share) : "memory");
    return before;
}

FASTMALADE_DEVICE uint32_t read_arrivals(const uint32_t* counter) {
    uint32_t count;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    return count;
}

// Between two reads of the counter; the blocks that are waited for run elsewhere, but not in the emulation.
FASTMALADE_DEVICE void let_others_arrive() {}

// Stores at the place of `local` (an address in this block's shared memory) in the block of rank `rank`.
FASTMALADE_DEVICE void store_at_rank(float* local, int rank, float value) {
#if __CUDA_ARCH__ >= 900
    uint32_t address = (uint32_t)__cvta_generic_to_shared(local);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#else
    *local = value;
#endif
}

}  // namespace fastmalade::cuda
#endif

namespace fastmalade::cuda {

constexpr int kWarp = 32;

#if !defined(FASTMALADE_HOST_ONLY)
// The barrier between stage `STAGE` and the next. It has a number so that the emulation can leave one of them out,
// which a test has to notice.
template <int STAGE>
FASTMALADE_DEVICE void block_barrier() {
#if defined(FASTMALADE_EMULATION)
    if (emulation::omitted_barrier == STAGE) return;
#endif
    __syncthreads();
}
#endif

}  // namespace fastmalade::cuda
