// Starts a kernel on a stream of the GPU, or runs it in the emulation.
#pragma once

#include <stdexcept>
#include <string>

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

// name: of the kernel, for the message where the launch fails.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, void* stream,
            const Parameters&... parameters) {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (grid.shared_bytes > kPlainSharedBytes) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes), name);
    }
    if (grid.cluster > kPortableCluster) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
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
