#include "cuda/device.h"

#include <map>
#include <mutex>

#include "cuda/launch.cuh"

namespace fastmalade::cuda {
namespace {

// Compiled for every architecture of the build: whether it can be loaded tells whether the others can.
__global__ void probe_kernel() {}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "asking for the device's attributes");
    return value;
}

}  // namespace

int count_devices(std::string& why) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess) return count;
    // No kernel has failed, so the error must not stay for the next call to find.
    (void)cudaGetLastError();
    if (error == cudaErrorNoDevice) return 0;
    why = std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
    return -1;
}

DeviceDescription describe_device(int device) {
    // Asking takes milliseconds, and the answers do not change while the process lives.
    static std::mutex mutex;
    static std::map<int, DeviceDescription> known;
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = known.find(device); found != known.end()) return found->second;
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "asking for the device's properties");
    DeviceDescription d{};
    d.name = properties.name, d.major = properties.major, d.minor = properties.minor;
    // The code of this build may be for an older device than this one; what it was compiled for decides.
    const CurrentDevice current(device);
    cudaFuncAttributes code{};
    const bool has_code = cudaFuncGetAttributes(&code, probe_kernel) == cudaSuccess;
    if (!has_code) (void)cudaGetLastError();
    d.facts.multiprocessors = properties.multiProcessorCount;
    d.facts.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    // Clusters of 16 blocks have to be allowed, and need not fit; 8 work on every device that has clusters.
    d.facts.most_cluster = attribute(cudaDevAttrClusterLaunch, device) ? 8 : 1;
    d.facts.has_tf32 = has_code && code.ptxVersion >= 80;
    return known[device] = d;
}

std::string missing_code(int device) {
    const CurrentDevice current(device);
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
    if (error == cudaSuccess) return "";
    (void)cudaGetLastError();
    return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
}

CurrentDevice::CurrentDevice(int device) : before_(0) {
    check(cudaGetDevice(&before_), "asking for the current device");
    check(cudaSetDevice(device), "choosing the device");
}

CurrentDevice::~CurrentDevice() { (void)cudaSetDevice(before_); }

}  // namespace fastmalade::cuda
