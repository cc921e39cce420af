// fastmalade._cuda: checks arguments and calls kernels/cuda. Arrays come as addresses on the device and sizes, a stream
// as its handle; the caller in fastmalade/backends/cuda/calls.py owns them and has checked dtype, device and
// contiguity. CUDA's runtime is linked statically and neither torch nor the driver is needed to load the module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/engine.h"

namespace py = pybind11;
using namespace fastmalade;
using namespace fastmalade::cuda;

namespace {

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
    throw py::value_error(what + ": expected " + expected + ", got " + got);
}

void check_least(const char* what, int64_t value, int64_t least) {
    if (value < least) fail(what, "at least " + std::to_string(least), std::to_string(value));
}

template <class T>
T* pointer(const char* what, uintptr_t address, bool needed, uintptr_t alignment = alignof(T)) {
    if (needed && address == 0) fail(what, "an address", "0");
    if (address % alignment != 0) {
        fail(what, "an address that is a multiple of " + std::to_string(alignment), std::to_string(address));
    }
    return reinterpret_cast<T*>(address);
}

// sizes: (channels, height, width, hidden1, hidden2)
AutoencoderShape check_shape(const std::vector<int64_t>& sizes) {
    if (sizes.size() != 5)
        fail("shape", "5 sizes (channels, height, width, hidden1, hidden2)", std::to_string(sizes.size()));
    // Far beyond any image: keeps every product of sizes within 64 bits.
    const int64_t most = 1 << 16;
    for (const int64_t size : sizes) {
        if (size < 1 || size > most) fail("shape", "sizes from 1 to " + std::to_string(most), std::to_string(size));
    }
    if (sizes[1] % 4 != 0) fail("height", "a multiple of 4", std::to_string(sizes[1]));
    if (sizes[2] % 4 != 0) fail("width", "a multiple of 4", std::to_string(sizes[2]));
    return AutoencoderShape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

AutoencoderWeights check_weights(const std::vector<uintptr_t>& addresses) {
    if (addresses.size() != 10) fail("weights", "10 addresses", std::to_string(addresses.size()));
    const float* p[10];
    for (size_t n = 0; n < 10; ++n) p[n] = pointer<const float>("weights", addresses[n], true);
    return AutoencoderWeights{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]};
}

FormName find_form(const std::string& name) {
    if (name == "auto") return FormName::automatic;
    if (name == "digits") return FormName::digits;
    if (name == "general") return FormName::general;
    if (name == "cluster") return FormName::cluster;
    if (name == "split") return FormName::split;
    if (name == "tensor") return FormName::tensor;
    fail("form", "auto, digits, general, cluster, split or tensor", name);
}

Precision find_precision(const std::string& name) {
    if (name == "fp32") return Precision::fp32;
    if (name == "tf32x3") return Precision::tf32x3;
    if (name == "tf32") return Precision::tf32;
    fail("precision", "fp32, tf32x3 or tf32", name);
}

// The four numbers of every step, rounded to float32.
struct StepNumbers {
    std::vector<float> step_sizes, noise_scales, lows, highs;
    StepNumbers(const std::vector<double>& a, const std::vector<double>& d, const std::vector<double>& low,
                const std::vector<double>& high)
        : step_sizes(a.begin(), a.end()),
          noise_scales(d.begin(), d.end()),
          lows(low.begin(), low.end()),
          highs(high.begin(), high.end()) {
        for (const auto* values : {&noise_scales, &lows, &highs}) {
            if (values->size() == step_sizes.size()) continue;
            fail("noise_scales, lows and highs", std::to_string(step_sizes.size()) + " values, one per step",
                 std::to_string(values->size()));
        }
        for (size_t t = 0; t < step_sizes.size(); ++t) {
            if (!std::isfinite(step_sizes[t]))
                fail("step_sizes", "finite float32 values", std::to_string(step_sizes[t]));
            if (!std::isfinite(noise_scales[t]))
                fail("noise_scales", "finite float32 values", std::to_string(noise_scales[t]));
            if (!(lows[t] <= highs[t])) {  // also where one is NaN
                fail("clamp bounds", "low <= high", std::to_string(lows[t]) + " and " + std::to_string(highs[t]));
            }
        }
    }
    Steps steps() const { return Steps{step_sizes, noise_scales, lows, highs}; }
};

Noise noise_of(uint64_t seed, uintptr_t seed_pointer, uintptr_t sample_ids, uintptr_t noise) {
    return Noise{seed, pointer<const int64_t>("seed_pointer", seed_pointer, false),
                 pointer<const int64_t>("sample_ids", sample_ids, false), pointer<const float>("noise", noise, false)};
}

void check_step(int64_t step) {
    if (step < 0 || step > UINT32_MAX) fail("step", "0 to 4294967295", std::to_string(step));
}

py::dict as_dict(const Choice& c) {
    py::dict d;
    d["form"] = name_of(c.form);
    d["images"] = c.images, d["cluster"] = c.cluster, d["resident"] = c.resident, d["blocks"] = c.blocks;
    d["threads"] = c.threads, d["shared_bytes"] = c.shared_bytes, d["packed_floats"] = c.packed_floats;
    return d;
}

Choice chosen(int device, const AutoencoderShape& shape, int64_t batch, bool gradient, const std::string& form,
              int images, int cluster, const std::string& precision) {
    return choose(shape, batch, gradient, describe_device(device).facts, find_form(form), images, cluster,
                  find_precision(precision));
}

py::tuple device_count() {
    std::string why;
    const int count = count_devices(why);
    return py::make_tuple(count, why);
}

py::dict device(int index) {
    const DeviceDescription d = describe_device(index);
    py::dict facts;
    facts["name"] = d.name, facts["capability"] = py::make_tuple(d.major, d.minor);
    facts["multiprocessors"] = d.facts.multiprocessors, facts["shared_bytes"] = d.facts.shared_bytes;
    facts["most_cluster"] = d.facts.most_cluster, facts["missing_code"] = missing_code(index);
    return facts;
}

py::dict choice(int device, const std::vector<int64_t>& sizes, int64_t batch, bool gradient, const std::string& form,
                int images, int cluster, const std::string& precision) {
    return as_dict(chosen(device, check_shape(sizes), batch, gradient, form, images, cluster, precision));
}

// As `choice`, for a device that need not be here.
py::dict choice_for(int multiprocessors, int shared_bytes, int most_cluster, const std::vector<int64_t>& sizes,
                    int64_t batch, bool gradient, const std::string& form, int images, int cluster,
                    const std::string& precision, bool has_tf32) {
    return as_dict(choose(check_shape(sizes), batch, gradient, {multiprocessors, shared_bytes, most_cluster, has_tf32},
                          find_form(form), images, cluster, find_precision(precision)));
}

// x: (batch, C, H, W), noise: (n_steps, batch, C, H, W) or 0, sample_ids: (batch,) or 0, out: (batch, C, H, W) or
// (n_steps + 1, batch, C, H, W), workspace: (choice's packed_floats,)
void chain(int device, uintptr_t stream, const std::string& form, int images, int cluster, int64_t batch,
           const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses, uintptr_t workspace,
           uintptr_t x, const std::vector<double>& step_sizes, const std::vector<double>& noise_scales,
           const std::vector<double>& lows, const std::vector<double>& highs, uint64_t seed, uintptr_t seed_pointer,
           uintptr_t sample_ids, uintptr_t noise, uintptr_t out, bool trajectory, bool reconstruct_only,
           const std::string& precision) {
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("batch", batch, 1);
    const StepNumbers numbers(step_sizes, noise_scales, lows, highs);
    const float* images_in = pointer<const float>("x", x, true);
    float* images_out = pointer<float>("out", out, true, 16);
    float* packed = pointer<float>("workspace", workspace, true, 16);
    const Noise from = noise_of(seed, seed_pointer, sample_ids, noise);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    langevin_chain(chosen(device, shape, batch, false, form, images, cluster, precision), shape, weights, packed, batch,
                   images_in, numbers.steps(), from, images_out, trajectory, reconstruct_only,
                   reinterpret_cast<void*>(stream));
}

// states: (n_steps + 1, batch, C, H, W); cotangent, gradient: (batch, C, H, W); noise_gradient: (n_steps, batch, C, H,
// W) or 0; precision: of the chain that left the states
void chain_gradient(int device, uintptr_t stream, const std::string& form, int images, int cluster, int64_t batch,
                    const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses,
                    uintptr_t workspace, uintptr_t states, const std::vector<double>& step_sizes,
                    const std::vector<double>& noise_scales, const std::vector<double>& lows,
                    const std::vector<double>& highs, uint64_t seed, uintptr_t seed_pointer, uintptr_t sample_ids,
                    uintptr_t noise, uintptr_t cotangent, uintptr_t gradient, uintptr_t noise_gradient,
                    const std::string& precision) {
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("batch", batch, 1);
    const StepNumbers numbers(step_sizes, noise_scales, lows, highs);
    const float* all = pointer<const float>("states", states, true);
    const float* g = pointer<const float>("cotangent", cotangent, true);
    float* result = pointer<float>("gradient", gradient, true, 16);
    float* by_noise = pointer<float>("noise_gradient", noise_gradient, false);
    float* packed = pointer<float>("workspace", workspace, true, 16);
    const Noise from = noise_of(seed, seed_pointer, sample_ids, noise);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    langevin_chain_gradient(chosen(device, shape, batch, true, form, images, cluster, precision), shape, weights,
                            packed, batch, all, numbers.steps(), from, g, result, by_noise,
                            reinterpret_cast<void*>(stream));
}

// x, gradient: (batch, C, H, W), workspace: (packed_floats of the gradient's choice,)
void error_gradient(int device, uintptr_t stream, const std::string& form, int images, int cluster, int64_t batch,
                    const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses,
                    uintptr_t workspace, uintptr_t x, uintptr_t gradient) {
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("batch", batch, 1);
    const float* images_in = pointer<const float>("x", x, true);
    float* result = pointer<float>("gradient", gradient, true, 16);
    float* packed = pointer<float>("workspace", workspace, true, 16);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    reconstruction_error_gradient(chosen(device, shape, batch, true, form, images, cluster, "fp32"), shape, weights,
                                  packed, batch, images_in, result, reinterpret_cast<void*>(stream));
}

// x, reconstruction, noise (or 0), out: (batch, elements)
void update(int device, uintptr_t stream, int64_t batch, int64_t elements, uintptr_t x, uintptr_t reconstruction,
            float step_size, float noise_scale, float low, float high, uint64_t seed, uintptr_t seed_pointer,
            uintptr_t sample_ids, int64_t step, uintptr_t noise, uintptr_t out) {
    check_step(step);
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    const StepNumbers numbers({step_size}, {noise_scale}, {low}, {high});
    const bool any = batch > 0 && elements > 0;
    const float* state = pointer<const float>("x", x, any);
    const float* r = pointer<const float>("reconstruction", reconstruction, any);
    float* result = pointer<float>("out", out, any);
    const Noise from = noise_of(seed, seed_pointer, sample_ids, noise);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    langevin_update(batch, elements, state, r, step_size, noise_scale, low, high, from, (uint32_t)step, result,
                    reinterpret_cast<void*>(stream));
}

// z: (batch, elements) or 0, words: (batch, 4 ceil(elements / 4)) or 0, sample_ids: (batch,)
void normal(int device, uintptr_t stream, int64_t batch, int64_t elements, uint64_t seed, uintptr_t seed_pointer,
            uintptr_t sample_ids, int64_t step, uintptr_t z, uintptr_t words) {
    check_step(step);
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    const Noise from = noise_of(seed, seed_pointer, sample_ids, 0);
    if (batch > 0 && elements > 0) pointer<const int64_t>("sample_ids", sample_ids, true);
    float* normals = pointer<float>("z", z, false);
    int64_t* drawn = pointer<int64_t>("words", words, false);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    standard_normal(batch, elements, from, (uint32_t)step, normals, drawn, reinterpret_cast<void*>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    using py::arg;
    m.doc() = "CUDA kernels of fastmalade over addresses and sizes; see fastmalade/backends/cuda/calls.py";
    m.attr("architectures") = FASTMALADE_CUDA_ARCHITECTURES;
    m.def("device_count", &device_count);
    m.def("device", &device, arg("index"));
    m.def("choice", &choice, arg("device"), arg("shape"), arg("batch"), arg("gradient"), arg("form"), arg("images"),
          arg("cluster"), arg("precision") = "fp32");
    m.def("choice_for", &choice_for, arg("multiprocessors"), arg("shared_bytes"), arg("most_cluster"), arg("shape"),
          arg("batch"), arg("gradient"), arg("form"), arg("images"), arg("cluster"), arg("precision") = "fp32",
          arg("has_tf32") = true);
    m.def("langevin_chain", &chain, arg("device"), arg("stream"), arg("form"), arg("images"), arg("cluster"),
          arg("batch"), arg("shape"), arg("weights"), arg("workspace"), arg("x"), arg("step_sizes"),
          arg("noise_scales"), arg("lows"), arg("highs"), arg("seed"), arg("seed_pointer"), arg("sample_ids"),
          arg("noise"), arg("out"), arg("trajectory"), arg("reconstruct_only"), arg("precision") = "fp32");
    m.def("chain_gradient", &chain_gradient, arg("device"), arg("stream"), arg("form"), arg("images"), arg("cluster"),
          arg("batch"), arg("shape"), arg("weights"), arg("workspace"), arg("states"), arg("step_sizes"),
          arg("noise_scales"), arg("lows"), arg("highs"), arg("seed"), arg("seed_pointer"), arg("sample_ids"),
          arg("noise"), arg("cotangent"), arg("gradient"), arg("noise_gradient"), arg("precision") = "fp32");
    m.def("reconstruction_error_gradient", &error_gradient, arg("device"), arg("stream"), arg("form"), arg("images"),
          arg("cluster"), arg("batch"), arg("shape"), arg("weights"), arg("workspace"), arg("x"), arg("gradient"));
    m.def("langevin_update", &update, arg("device"), arg("stream"), arg("batch"), arg("elements"), arg("x"),
          arg("reconstruction"), arg("step_size"), arg("noise_scale"), arg("low"), arg("high"), arg("seed"),
          arg("seed_pointer"), arg("sample_ids"), arg("step"), arg("noise"), arg("out"));
    m.def("standard_normal", &normal, arg("device"), arg("stream"), arg("batch"), arg("elements"), arg("seed"),
          arg("seed_pointer"), arg("sample_ids"), arg("step"), arg("z"), arg("words"));
}
