// Everything the kernels use of CUDA, in one place: the same kernel source is compiled by nvcc for a GPU, and by a C++
// compiler against emulation/emulation.h, where every CUDA thread runs on the CPU.
//
// Besides threadIdx, blockIdx and __syncthreads the kernels use only the functions below and those of tensor_core.cuh,
// so that is all the emulation has to provide.
#pragma once

#include <stdint.h>

#include "common/layout.h"
#include "common/philox.h"

#if defined(FASTMALADE_HOST_ONLY)
// Only the sizes of shapes.cuh and forms.cuh, for code that runs on the CPU.
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

// Thread-block clusters exist from sm_90 on; choose() takes them only where the device has them.
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

// For every thread of every block of the cluster. What any of them stored before is seen by all of them after.
FASTMALADE_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

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
// The barrier between stage `STAGE` and the next. The number lets the emulation leave one of them out, which a test
// then has to notice.
template <int STAGE>
FASTMALADE_DEVICE void block_barrier() {
#if defined(FASTMALADE_EMULATION)
    if (emulation::omitted_barrier == STAGE) return;
#endif
    __syncthreads();
}
#endif

}  // namespace fastmalade::cuda
