// Starts a kernel on a stream of the GPU, or runs it in the emulation.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/engine.h"
#include "cuda/platform.cuh"

#if defined(FASTMALADE_EMULATION)
#include "cuda/emulation/scheduler.h"
#endif

namespace fastmalade::cuda {

struct Grid {
    int blocks, threads, cluster, shared_bytes;
    bool all_at_once = false;  // blocks wait for each other: a cooperative launch, `cluster` of them one group
};

#if defined(FASTMALADE_EMULATION)

template <class... Parameters>
void launch(const char*, void (*kernel)(Parameters...), const Grid& grid, void*, const Parameters&... parameters) {
    emulation::run({grid.blocks, grid.threads, grid.cluster, grid.shared_bytes}, [&] { kernel(parameters...); });
}

#else

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

// Blocks that do not fit on the device beside each other would wait for ones that never start.
inline void check_all_at_once(const char* name, const void* function, const Grid& grid) {
    int device = 0, multiprocessors = 0, each = 0;
    check(cudaGetDevice(&device), name);
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), name);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, function, grid.threads, (size_t)grid.shared_bytes),
          name);
    if (grid.blocks > each * multiprocessors) {
        throw std::runtime_error(std::string(name) + ": expected at most " + std::to_string(each * multiprocessors) +
                                 " blocks, which fit on the device at once, got " + std::to_string(grid.blocks));
    }
}

template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, void* stream,
            const Parameters&... parameters) {
    constexpr int kPlainSharedBytes = 48 * 1024, kPortableCluster = 8;
    const void* function = reinterpret_cast<const void*>(kernel);
    if (grid.shared_bytes > kPlainSharedBytes) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes), name);
    }
    if (grid.cluster > kPortableCluster && !grid.all_at_once) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
    }
    cudaLaunchAttribute attribute{};
    if (grid.all_at_once) {
        check_all_at_once(name, function, grid);
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    } else {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = (unsigned)grid.cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3((unsigned)grid.blocks);
    config.blockDim = dim3((unsigned)grid.threads);
    config.dynamicSmemBytes = (size_t)grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = grid.cluster > 1 || grid.all_at_once ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, parameters...), name);
}

#endif

}  // namespace fastmalade::cuda
