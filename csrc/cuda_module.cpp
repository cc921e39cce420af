// fastmalade._cuda: checks arguments and calls kernels/cuda. Arrays are given as addresses on the device and sizes, a
// stream as its handle. The caller, fastmalade/backends/cuda/calls.py, owns them and has checked dtype, device and
// contiguity. CUDA's runtime is linked statically, so loading the module takes neither torch nor the driver.
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
    return shape_of(sizes.data());
}

AutoencoderWeights check_weights(const std::vector<uintptr_t>& addresses) {
    if (addresses.size() != 10) fail("weights", "10 addresses", std::to_string(addresses.size()));
    const float* arrays[10];
    for (size_t n = 0; n < 10; ++n) arrays[n] = pointer<const float>("weights", addresses[n], true);
    return AutoencoderWeights::of(arrays);
}

FormName find_form(const std::string& name) {
    if (name == "auto") return FormName::automatic;
    if (name == "digits") return FormName::digits;
    if (name == "general") return FormName::general;
    if (name == "cluster") return FormName::cluster;
    if (name == "tensor") return FormName::tensor;
    fail("form", "auto, digits, general, cluster or tensor", name);
}

Precision find_precision(const std::string& name) {
    if (name == "fp32") return Precision::fp32;
    if (name == "tf32x3") return Precision::tf32x3;
    if (name == "tf32") return Precision::tf32;
    fail("precision", "fp32, tf32x3 or tf32", name);
}

Request make_request(const std::string& form, int images, int cluster, const std::string& precision) {
    return Request{find_form(form), images, cluster, find_precision(precision)};
}

void check_step(float step_size, float noise_scale, float low, float high) {
    if (!std::isfinite(step_size)) fail("step_sizes", "finite float32 values", std::to_string(step_size));
    if (!std::isfinite(noise_scale)) fail("noise_scales", "finite float32 values", std::to_string(noise_scale));
    if (!(low <= high)) {  // also where one is NaN
        fail("clamp bounds", "low <= high", std::to_string(low) + " and " + std::to_string(high));
    }
}

// Numbers of N steps, rounded to float32.
Steps make_steps(const std::vector<double>& step_sizes, const std::vector<double>& noise_scales,
                 const std::vector<double>& lows, const std::vector<double>& highs) {
    for (const auto* values : {&noise_scales, &lows, &highs}) {
        if (values->size() == step_sizes.size()) continue;
        fail("noise_scales, lows and highs", std::to_string(step_sizes.size()) + " values, one per step",
             std::to_string(values->size()));
    }
    Steps steps;
    steps.step_sizes.assign(step_sizes.begin(), step_sizes.end());
    steps.noise_scales.assign(noise_scales.begin(), noise_scales.end());
    steps.lows.assign(lows.begin(), lows.end());
    steps.highs.assign(highs.begin(), highs.end());
    for (size_t t = 0; t < step_sizes.size(); ++t) {
        check_step(steps.step_sizes[t], steps.noise_scales[t], steps.lows[t], steps.highs[t]);
    }
    return steps;
}

uint32_t check_number(int64_t step) {
    if (step < 0 || step > UINT32_MAX) fail("step", "0 to 4294967295", std::to_string(step));
    return (uint32_t)step;
}

Step make_step(int64_t number, float step_size, float noise_scale, float low, float high) {
    check_step(step_size, noise_scale, low, high);
    return Step{check_number(number), step_size, noise_scale, low, high};
}

NoiseSource make_noise(uint64_t seed, uintptr_t seed_pointer, uintptr_t sample_ids, uintptr_t given) {
    NoiseSource noise{};
    noise.seed = seed, noise.seed_pointer = pointer<const int64_t>("seed_pointer", seed_pointer, false);
    noise.sample_ids = pointer<const int64_t>("sample_ids", sample_ids, false);
    noise.given = pointer<const float>("noise", given, false);
    return noise;
}

py::dict as_dict(const Choice& c) {
    py::dict d;
    d["form"] = name_of(c.form);
    d["images"] = c.images, d["cluster"] = c.cluster, d["resident"] = c.resident, d["blocks"] = c.blocks;
    d["threads"] = c.threads, d["shared_bytes"] = c.shared_bytes, d["packed_floats"] = c.packed_floats;
    return d;
}

// A call of the chain or of its gradient, without the workspace: how large that is follows from the choice.
struct DeviceCall {
    int device;
    bool gradient;
    Call call;
};

DeviceCall make_call(int device, uintptr_t stream, const Request& request, bool gradient, int64_t batch,
                     const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses) {
    check_least("batch", batch, 1);
    DeviceCall made{device, gradient, {}};
    Call& call = made.call;
    call.shape = check_shape(sizes), call.weights = check_weights(weight_addresses), call.batch = batch;
    call.choice = choose(call.shape, batch, gradient, describe_device(device).facts, request);
    call.stream = reinterpret_cast<void*>(stream);
    return made;
}

// The call with its workspace, an address of (packed_floats,) float32.
Call complete(const DeviceCall& made, uintptr_t workspace, bool gradient) {
    if (made.gradient != gradient) {
        fail("call", gradient ? "one of a gradient" : "one of a chain",
             gradient ? "one of a chain" : "one of a gradient");
    }
    Call call = made.call;
    call.workspace = pointer<float>("workspace", workspace, true, 16);
    return call;
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

DeviceFacts make_facts(int multiprocessors, int shared_bytes, int most_cluster, bool has_tf32) {
    DeviceFacts facts{};
    facts.multiprocessors = multiprocessors, facts.shared_bytes = shared_bytes;
    facts.most_cluster = most_cluster, facts.has_tf32 = has_tf32;
    return facts;
}

py::dict choice(int device, const std::vector<int64_t>& sizes, int64_t batch, bool gradient, const Request& request) {
    return as_dict(choose(check_shape(sizes), batch, gradient, describe_device(device).facts, request));
}

// As `choice`, for a device that need not be in this machine.
py::dict choice_for(const DeviceFacts& device, const std::vector<int64_t>& sizes, int64_t batch, bool gradient,
                    const Request& request) {
    return as_dict(choose(check_shape(sizes), batch, gradient, device, request));
}

// x: (batch, C, H, W), out: (batch, C, H, W) or (n_steps + 1, batch, C, H, W)
void chain(const DeviceCall& made, uintptr_t workspace, uintptr_t x, const Steps& steps, const NoiseSource& noise,
           uintptr_t out, bool trajectory) {
    const Call call = complete(made, workspace, false);
    const float* images = pointer<const float>("x", x, true);
    float* result = pointer<float>("out", out, true, 16);
    const py::gil_scoped_release released;
    const CurrentDevice current(made.device);
    langevin_chain(call, images, steps, noise, result, trajectory);
}

// x, out: (batch, C, H, W)
void forward(const DeviceCall& made, uintptr_t workspace, uintptr_t x, uintptr_t out) {
    const Call call = complete(made, workspace, false);
    const float* images = pointer<const float>("x", x, true);
    float* result = pointer<float>("out", out, true, 16);
    const py::gil_scoped_release released;
    const CurrentDevice current(made.device);
    autoencoder_forward(call, images, result);
}

// states: (n_steps + 1, batch, C, H, W); cotangent, gradient: (batch, C, H, W); noise_gradient: (n_steps, batch, C, H,
// W) or 0
void chain_gradient(const DeviceCall& made, uintptr_t workspace, uintptr_t states, const Steps& steps,
                    const NoiseSource& noise, uintptr_t cotangent, uintptr_t gradient, uintptr_t noise_gradient) {
    const Call call = complete(made, workspace, true);
    const float* all = pointer<const float>("states", states, true);
    const float* g = pointer<const float>("cotangent", cotangent, true);
    float* result = pointer<float>("gradient", gradient, true, 16);
    float* by_noise = pointer<float>("noise_gradient", noise_gradient, false);
    const py::gil_scoped_release released;
    const CurrentDevice current(made.device);
    langevin_chain_gradient(call, all, steps, noise, g, result, by_noise);
}

// x, gradient: (batch, C, H, W)
void error_gradient(const DeviceCall& made, uintptr_t workspace, uintptr_t x, uintptr_t gradient) {
    const Call call = complete(made, workspace, true);
    const float* images = pointer<const float>("x", x, true);
    float* result = pointer<float>("gradient", gradient, true, 16);
    const py::gil_scoped_release released;
    const CurrentDevice current(made.device);
    reconstruction_error_gradient(call, images, result);
}

// x, reconstruction, noise's given array, out: (batch, elements)
void update(int device, uintptr_t stream, int64_t batch, int64_t elements, uintptr_t x, uintptr_t reconstruction,
            const Step& step, const NoiseSource& noise, uintptr_t out) {
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    const bool any = batch > 0 && elements > 0;
    const float* state = pointer<const float>("x", x, any);
    const float* r = pointer<const float>("reconstruction", reconstruction, any);
    float* result = pointer<float>("out", out, any);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    langevin_update(batch, elements, state, r, step, noise, result, reinterpret_cast<void*>(stream));
}

// z: (batch, elements) or 0, words: (batch, 4 ceil(elements / 4)) or 0
void normal(int device, uintptr_t stream, int64_t batch, int64_t elements, const NoiseSource& noise, int64_t step,
            uintptr_t z, uintptr_t words) {
    const uint32_t number = check_number(step);
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    float* normals = pointer<float>("z", z, false);
    int64_t* drawn = pointer<int64_t>("words", words, false);
    const py::gil_scoped_release released;
    const CurrentDevice current(device);
    standard_normal(batch, elements, noise, number, normals, drawn, reinterpret_cast<void*>(stream));
}

void bind_values(py::module_& m) {
    using py::arg;
    py::class_<DeviceFacts>(m, "DeviceFacts")
        .def(py::init(&make_facts), arg("multiprocessors"), arg("shared_bytes"), arg("most_cluster"),
             arg("has_tf32") = true);
    py::class_<Request>(m, "Request")
        .def(py::init(&make_request), arg("form") = "auto", arg("images") = 0, arg("cluster") = 0,
             arg("precision") = "fp32");
    py::class_<Steps>(m, "Steps")
        .def(py::init(&make_steps), arg("step_sizes"), arg("noise_scales"), arg("lows"), arg("highs"));
    py::class_<Step>(m, "Step").def(py::init(&make_step), arg("number"), arg("step_size"), arg("noise_scale"),
                                    arg("low"), arg("high"));
    py::class_<NoiseSource>(m, "NoiseSource")
        .def(py::init(&make_noise), arg("seed") = 0, arg("seed_pointer") = 0, arg("sample_ids") = 0, arg("given") = 0);
    py::class_<DeviceCall>(m, "Call")
        .def(py::init(&make_call), arg("device"), arg("stream"), arg("request"), arg("gradient"), arg("batch"),
             arg("shape"), arg("weights"))
        .def_property_readonly("packed_floats", [](const DeviceCall& made) { return made.call.choice.packed_floats; });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    using py::arg;
    m.doc() = "CUDA kernels of fastmalade over addresses and sizes; see fastmalade/backends/cuda/calls.py";
    m.attr("architectures") = FASTMALADE_CUDA_ARCHITECTURES;
    bind_values(m);
    m.def("device_count", &device_count);
    m.def("device", &device, arg("index"));
    m.def("choice", &choice, arg("device"), arg("shape"), arg("batch"), arg("gradient"), arg("request"));
    m.def("choice_for", &choice_for, arg("device"), arg("shape"), arg("batch"), arg("gradient"), arg("request"));
    m.def("langevin_chain", &chain, arg("call"), arg("workspace"), arg("x"), arg("steps"), arg("noise"), arg("out"),
          arg("trajectory"));
    m.def("autoencoder_forward", &forward, arg("call"), arg("workspace"), arg("x"), arg("out"));
    m.def("chain_gradient", &chain_gradient, arg("call"), arg("workspace"), arg("states"), arg("steps"), arg("noise"),
          arg("cotangent"), arg("gradient"), arg("noise_gradient"));
    m.def("reconstruction_error_gradient", &error_gradient, arg("call"), arg("workspace"), arg("x"), arg("gradient"));
    m.def("langevin_update", &update, arg("device"), arg("stream"), arg("batch"), arg("elements"), arg("x"),
          arg("reconstruction"), arg("step"), arg("noise"), arg("out"));
    m.def("standard_normal", &normal, arg("device"), arg("stream"), arg("batch"), arg("elements"), arg("noise"),
          arg("step"), arg("z"), arg("words"));
}
