// A CPU's stand-in for the part of CUDA that the kernels use (platform.cuh lists it): blocks, barriers, shared memory,
// clusters, and what the lanes of a warp do together (warp.h). Not modelled: warps in lock-step, the order of lanes,
// caches, speed.
//
// There are two ways to run the threads of a cluster:
//   fibers    one after the other on one CPU thread, each up to its next barrier: quick, repeatable, and a barrier that
//             not all threads reach is reported as what it is
//   threads   (FASTMALADE_EMULATION_THREADS) one CPU thread each, so that ThreadSanitizer sees every access that no
//             barrier orders
//
// Shared memory is filled with NaN before a block starts, so a value that a kernel reads without having written it
// shows.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <stdexcept>
#include <vector>

#define FASTMALADE_DEVICE inline
#define FASTMALADE_BOTH inline
#define FASTMALADE_KERNEL(threads) inline void

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) float2 {
    float x, y;
};

inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }

inline int __float_as_int(float a) {
    int bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}

inline float __int_as_float(int bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}

namespace fastmalade::cuda::emulation {

struct Mailbox;  // mailbox.h

struct Index {
    int x;
};

struct Launch {
    int blocks, threads;
    int cluster;       // blocks of a cluster
    int shared_bytes;  // of a block
};

// What one CUDA thread knows about itself.
struct Self {
    Index thread, block, block_size, grid_size;
    int rank, cluster;
    std::vector<float>* memory;  // of the blocks of its cluster
    Mailbox* warp = nullptr;
    int meetings = 0;  // of its warp so far
};

// Set by the scheduler before a thread runs.
inline thread_local Self* self = nullptr;

// A barrier that is left out, by its number in the kernels; 0 for none.
inline int omitted_barrier = 0;

enum class Scope { warp, block, cluster };
void wait(Scope scope);  // scheduler.h

}  // namespace fastmalade::cuda::emulation

#define threadIdx (::fastmalade::cuda::emulation::self->thread)
#define blockIdx (::fastmalade::cuda::emulation::self->block)
#define blockDim (::fastmalade::cuda::emulation::self->block_size)
#define gridDim (::fastmalade::cuda::emulation::self->grid_size)

inline void __syncthreads() { fastmalade::cuda::emulation::wait(fastmalade::cuda::emulation::Scope::block); }

namespace fastmalade::cuda {

// Aligned to 16 bytes: a vector's storage is.
inline float* block_memory() { return emulation::self->memory[emulation::self->rank].data(); }
inline int cluster_rank() { return emulation::self->rank; }
inline int cluster_size() { return emulation::self->cluster; }
inline void cluster_barrier() { emulation::wait(emulation::Scope::cluster); }

inline void store_at_rank(float* local, int rank, float value) {
    emulation::self->memory[rank][(size_t)(local - block_memory())] = value;
}

}  // namespace fastmalade::cuda
