// Starts a kernel on a stream of the GPU, or runs it in the emulation.
#pragma once

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/platform.cuh"

#if defined(FASTMALADE_EMULATION)
#include "cuda/emulation/scheduler.h"
#endif

namespace fastmalade::cuda {

struct Grid {
    int blocks, threads;
    int cluster = 1;       // blocks of a cluster
    int shared_bytes = 0;  // of a block
};

#if defined(FASTMALADE_EMULATION)

template <class... Parameters>
void launch(const char*, void (*kernel)(Parameters...), const Grid& grid, void*, const Parameters&... parameters) {
    emulation::run({grid.blocks, grid.threads, grid.cluster, grid.shared_bytes}, [&] { kernel(parameters...); });
}

#else

// Above these a kernel has to say what it wants: shared memory of a block, and blocks of a cluster.
constexpr int kPlainSharedBytes = 48 * 1024, kPortableCluster = 8;

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

// Lets launches of a kernel on the current device have as much dynamic shared memory as a block can, or clusters of any
// size. Said once for each kernel and device, and always the same: if every launch said what it needs itself, two
// threads would take it back from each other between the saying and the launch.
inline void allow_most(const char* name, const void* function, cudaFuncAttribute what) {
    static std::mutex mutex;
    static std::set<std::tuple<int, const void*, cudaFuncAttribute> > allowed;
    int device = 0;
    check(cudaGetDevice(&device), name);
    const std::lock_guard<std::mutex> lock(mutex);
    if (allowed.count({device, function, what}) != 0) return;
    int most = 1;  // of an attribute that says yes
    if (what == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        cudaFuncAttributes attributes{};
        check(cudaFuncGetAttributes(&attributes, function), name);
        check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
        most -= (int)attributes.sharedSizeBytes;  // what the kernel has beside it, of a fixed size
    }
    check(cudaFuncSetAttribute(function, what, most), name);
    allowed.insert({device, function, what});
}

// name: of the kernel, for the message where the launch fails.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, void* stream,
            const Parameters&... parameters) {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (grid.shared_bytes > kPlainSharedBytes) {
        allow_most(name, function, cudaFuncAttributeMaxDynamicSharedMemorySize);
    }
    if (grid.cluster > kPortableCluster) {
        allow_most(name, function, cudaFuncAttributeNonPortableClusterSizeAllowed);
    }
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)grid.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3((unsigned)grid.blocks);
    config.blockDim = dim3((unsigned)grid.threads);
    config.dynamicSmemBytes = (size_t)grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = grid.cluster > 1 ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, parameters...), name);
}

#endif

}  // namespace fastmalade::cuda
