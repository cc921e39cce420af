// What the bindings of fastmalade._cpu share: instruction sets, checks of arguments, and the interpreter's lock.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <exception>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/host/engine.h"
#include "cpu/host/interruption.h"

namespace {

namespace py = pybind11;
namespace cpu = fastmalade::cpu;
using fastmalade::AutoencoderShape;
using fastmalade::AutoencoderWeights;
using fastmalade::ChainArguments;

struct Isa {
    const cpu::Kernels* kernels;
    bool supported;
};

// Built instruction sets from the most portable to the widest, and whether this processor and system run them.
const std::vector<Isa>& isas() {
    static const std::vector<Isa> found = [] {
        std::vector<Isa> list = {{&cpu::baseline::kernels, true}};
#if defined(FASTMALADE_WITH_AVX2)
        list.push_back({&cpu::avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#if defined(FASTMALADE_WITH_AVX512)
        list.push_back(
            {&cpu::avx512::kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
        return list;
    }();
    return found;
}

std::vector<std::string> isas_built() {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) names.push_back(isa.kernels->isa);
    return names;
}

std::vector<std::string> isas_supported() {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) {
        if (isa.supported) names.push_back(isa.kernels->isa);
    }
    return names;
}

const cpu::Kernels& find_kernels(const std::string& name) {
    for (const Isa& isa : isas()) {
        if (name != isa.kernels->isa) continue;
        if (!isa.supported) throw py::value_error("instruction set " + name + " is not supported by this processor");
        return *isa.kernels;
    }
    std::string built;
    for (const std::string& other : isas_built()) built += (built.empty() ? "" : ", ") + other;
    throw py::value_error("instruction set: expected one of " + built + ", got " + name);
}

cpu::Form find_form(const std::string& name) {
    if (name == "auto") return cpu::Form::automatic;
    if (name == "throughput") return cpu::Form::throughput;
    if (name == "quad") return cpu::Form::quad;
    if (name == "latency") return cpu::Form::latency;
    throw py::value_error("form: expected auto, throughput, quad or latency, got " + name);
}

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
    throw py::value_error(what + ": expected " + expected + ", got " + got);
}

void check_least(const char* what, int64_t value, int64_t least) {
    if (value < least) fail(what, "at least " + std::to_string(least), std::to_string(value));
}

template <class T>
T* pointer(const char* what, uintptr_t address, bool needed) {
    if (needed && address == 0) fail(what, "an address", "0");
    if (address % alignof(T) != 0) {
        fail(what, "an address that is a multiple of " + std::to_string(alignof(T)), std::to_string(address));
    }
    return reinterpret_cast<T*>(address);
}

// Runs `work` without the interpreter lock. Not pybind11's guard: where the interpreter is shutting down, taking the
// lock back ends a daemon thread by unwinding its stack, which may pass through a function but not through a
// destructor.
//
// Python's signal handlers run on the main thread alone, which is never ended that way. There the lock is taken every
// few tasks to run them, and where one raises (Ctrl-C) the call ends early with its exception: what the kernels were to
// write is then incomplete.
template <class F>
void without_interpreter_lock(F work) {
    static thread_local const bool is_main_thread = ::getpid() == (pid_t)::syscall(SYS_gettid);
    PyThreadState* state = PyEval_SaveThread();
    const auto handler_raised = [](void* context) {
        PyThreadState** const saved = static_cast<PyThreadState**>(context);
        PyEval_RestoreThread(*saved);
        const bool raised = PyErr_CheckSignals() != 0;
        *saved = PyEval_SaveThread();
        return raised;
    };
    std::exception_ptr failure;
    bool interrupted = false;
    try {
        if (is_main_thread) {
            cpu::Interruption interruption(handler_raised, &state);
            work();
            interrupted = interruption.ended();
        } else {
            work();
        }
    } catch (const std::exception&) {
        failure = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (interrupted) throw py::error_already_set();
    if (failure) std::rethrow_exception(failure);
}

// sample_ids: (batch,), or 0 .. batch-1 where there is no address; kept in `own` then.
const int64_t* sample_ids_or_default(uintptr_t address, int64_t batch, std::vector<int64_t>& own) {
    if (address != 0 || batch <= 0) return pointer<const int64_t>("sample_ids", address, false);
    own.resize((size_t)batch);
    std::iota(own.begin(), own.end(), (int64_t)0);
    return own.data();
}

// sizes: (channels, height, width, hidden1, hidden2)
AutoencoderShape check_shape(const std::vector<int64_t>& sizes) {
    if (sizes.size() != 5)
        fail("shape", "5 sizes (channels, height, width, hidden1, hidden2)", std::to_string(sizes.size()));
    const AutoencoderShape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    check_least("channels", s.channels, 1);
    check_least("hidden1", s.hidden1, 1);
    check_least("hidden2", s.hidden2, 1);
    check_least("height", s.height, 4);
    check_least("width", s.width, 4);
    if (s.height % 4 != 0) fail("height", "a multiple of 4", std::to_string(s.height));
    if (s.width % 4 != 0) fail("width", "a multiple of 4", std::to_string(s.width));
    // Far beyond any image: keeps every product of sizes within 64 bits.
    const int64_t most = 1 << 16;
    for (const int64_t size : sizes) {
        if (size > most) fail("shape", "sizes up to " + std::to_string(most), std::to_string(size));
    }
    return s;
}

AutoencoderWeights check_weights(const std::vector<uintptr_t>& addresses) {
    if (addresses.size() != 10) fail("weights", "10 addresses", std::to_string(addresses.size()));
    const float* p[10];
    for (size_t n = 0; n < 10; ++n) p[n] = pointer<const float>("weights", addresses[n], true);
    return AutoencoderWeights::of(p);
}

std::vector<float> check_numbers(const char* what, const std::vector<double>& values, size_t count) {
    if (values.size() != count) {
        fail(what, std::to_string(count) + " values, one per step", std::to_string(values.size()));
    }
    std::vector<float> numbers;
    for (const double value : values) numbers.push_back((float)value);
    return numbers;
}

void check_finite(const char* what, const std::vector<float>& values) {
    for (const float value : values) {
        if (!std::isfinite(value)) fail(what, "finite float32 values", std::to_string(value));
    }
}

void check_step(int64_t step) {
    if (step < 0 || step > std::numeric_limits<uint32_t>::max()) {
        fail("step", "0 to 4294967295", std::to_string(step));
    }
}

// What the N steps of a chain do, checked once for all its calls, and the arguments made of it.
struct Steps {
    std::vector<float> a, d, low, high;  // (n_steps,) each

    Steps(const std::vector<double>& step_sizes, const std::vector<double>& noise_scales,
          const std::vector<double>& lows, const std::vector<double>& highs)
        : a(check_numbers("step_sizes", step_sizes, step_sizes.size())),
          d(check_numbers("noise_scales", noise_scales, step_sizes.size())),
          low(check_numbers("lows", lows, step_sizes.size())),
          high(check_numbers("highs", highs, step_sizes.size())) {
        check_finite("step_sizes", a);
        check_finite("noise_scales", d);
        for (size_t t = 0; t < a.size(); ++t) {
            if (!(low[t] <= high[t])) {  // also where one is NaN
                fail("clamp bounds", "low <= high", std::to_string(low[t]) + " and " + std::to_string(high[t]));
            }
        }
    }

    int64_t count() const { return (int64_t)a.size(); }
};

// Where the noise of a chain comes from: drawn from its counters, or given.
struct NoiseSource {
    uint64_t seed;
    const int64_t* sample_ids;  // (batch,)
    const float* given;         // (n_steps, batch, C, H, W), or null
    std::vector<int64_t> own_ids;

    // sample_ids: (batch,) or 0 for 0 .. batch-1; noise: (n_steps, batch, C, H, W) or 0
    NoiseSource(uint64_t the_seed, uintptr_t sample_ids_at, uintptr_t noise_at, int64_t batch)
        : seed(the_seed), given(pointer<const float>("noise", noise_at, false)) {
        sample_ids = sample_ids_or_default(sample_ids_at, batch, own_ids);
    }
    NoiseSource(const NoiseSource&) = delete;  // sample_ids may point into it
};

// out: (batch, C, H, W), with a trajectory (n_steps + 1, batch, C, H, W), or null for a gradient
ChainArguments chain_arguments(int64_t batch, const float* x, const Steps& steps, const NoiseSource& noise, float* out,
                               bool trajectory) {
    ChainArguments arguments{};
    arguments.batch = batch;
    arguments.n_steps = steps.count();
    arguments.x = x;
    arguments.step_sizes = steps.a.data();
    arguments.noise_scales = steps.d.data();
    arguments.lows = steps.low.data();
    arguments.highs = steps.high.data();
    arguments.seed = noise.seed;
    arguments.sample_ids = noise.sample_ids;
    arguments.noise = noise.given;
    arguments.out = out;
    arguments.trajectory = trajectory;
    return arguments;
}

}  // namespace
