// Facts about the GPUs of this machine, and the current device of a call.
#pragma once

#include <stdint.h>

#include <string>

#include "cuda/engine.h"

namespace fastmalade::cuda {

// Number of devices; -1 where the driver is missing or does not work, with CUDA's message in `why`.
int count_devices(std::string& why);

struct DeviceDescription {
    std::string name;
    int major, minor;
    DeviceFacts facts;
};

// Throws std::runtime_error where the device does not answer.
DeviceDescription describe_device(int device);

// Empty where this build's code runs on the device; else what CUDA says.
std::string missing_code(int device);

// Makes a device the current one for a call, and restores the old one.
class CurrentDevice {
public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

private:
    int before_;
};

}  // namespace fastmalade::cuda
