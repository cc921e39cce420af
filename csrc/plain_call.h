// The chain for the ordinary case, a plain float32 tensor through the autoencoder of this package: one call that finds
// the weights, checks everything and computes. On one image Python would take half as long for that as the kernels for
// all steps. Whatever is out of the ordinary is refused, without an error: the caller goes the long way, which says
// what it is.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu_arguments.h"
#include "exchange.h"
#include "recorded_call.h"

#include "cpu/host/engine.h"

namespace {

enum class PlainResult { refused, finite, diverged };

// A name that lives as long as the interpreter.
inline PyObject* interned(const char* name) {
    PyObject* text = PyUnicode_InternFromString(name);
    if (!text) throw py::error_already_set();
    return text;
}

// Whether an attribute, or the answer of a method without arguments, is False; nothing else is taken for it.
inline bool is_false(PyObject* answer) {
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);  // False outlives it
    return answer == Py_False;
}

// The parameters of the five layers in order, kept alive: another thread may give a module others meanwhile.
class Parameters {
public:
    // modules: `_modules` of an Autoencoder
    explicit Parameters(PyObject* modules) {
        static PyObject* const layers[] = {interned("conv1"), interned("conv2"), interned("deconv1"),
                                           interned("deconv2"), interned("conv3")};
        static PyObject* const kinds[] = {interned("weight"), interned("bias")};
        static PyObject* const parameters = interned("_parameters");
        complete_ = PyDict_Check(modules);
        for (int layer = 0; complete_ && layer < 5; ++layer) {
            PyObject* const module = PyDict_GetItemWithError(modules, layers[layer]);
            const auto own = py::reinterpret_steal<py::object>(module ? PyObject_GetAttr(module, parameters) : nullptr);
            complete_ = own && PyDict_Check(own.ptr());
            for (int kind = 0; complete_ && kind < 2; ++kind) {
                // Not there for layers that are parametrised or pruned.
                PyObject* const parameter = PyDict_GetItemWithError(own.ptr(), kinds[kind]);
                tensors_[2 * layer + kind] = py::reinterpret_borrow<py::object>(parameter);
                complete_ = parameter && parameter != Py_None;
            }
        }
        PyErr_Clear();
    }

    bool complete() const { return complete_; }
    PyObject* operator[](int n) const { return tensors_[n].ptr(); }

private:
    py::object tensors_[10];
    bool complete_;
};

// The kernels that the environment asks for or that are the widest; null where that takes an error message.
inline const cpu::Kernels* plain_kernels(bool any_backend) {
    static const std::vector<Isa> list = isas();
    const char* const backend = any_backend ? std::getenv("FASTMALADE_BACKEND") : nullptr;
    if (backend && *backend && std::strcmp(backend, "cpu") != 0) return nullptr;
    const char* const wanted = std::getenv("FASTMALADE_CPU_ISA");
    const cpu::Kernels* found = nullptr;
    for (const Isa& isa : list) {
        if (isa.supported && (!wanted || !*wanted || std::strcmp(wanted, isa.kernels->isa) == 0)) found = isa.kernels;
    }
    return found;
}

// What was found of a call that is of the ordinary kind.
struct PlainCall {
    const cpu::Kernels* kernels = nullptr;  // none: the call is refused, and nothing else is set
    AutoencoderShape shape{};
    AutoencoderWeights weights{};
    int64_t batch = 0;
    const float* in = nullptr;  // (batch, C, H, W)
    float* out = nullptr;       // (batch, C, H, W)

    int64_t count() const { return batch * shape.channels * shape.height * shape.width; }
};

using fastmalade::exchange::Table;

// Fills `call` but for the kernels; false where an array is not plain or not of the right shape.
inline bool find_arrays(const Table& table, py::handle in, py::handle out, const Parameters& parameters,
                        PlainCall* call) {
    fastmalade::exchange::Tensor images, result;
    fastmalade::exchange::Model model;
    if (!read_plain(table, in, 4, &images)) return false;
    const int64_t batch = images.shape[0], height = images.shape[2], width = images.shape[3];
    const uintptr_t from = address(images);
    const auto weight = [&](int n) { return py::handle(parameters[n]); };
    if (height % 4 != 0 || width % 4 != 0 || !read_weights(table, images, weight, &model)) return false;
    if (!read_plain(table, out, 4, &result)) return false;
    for (int axis = 0; axis < 4; ++axis) {
        if (result.shape[axis] != images.shape[axis]) fail("out", "a tensor of the shape of the images", "another");
    }
    call->shape = check_shape({model.sizes, model.sizes + 5});
    call->weights = check_weights({model.weights, model.weights + 10});
    call->batch = batch;
    call->in = pointer<const float>("x", from, true);
    call->out = pointer<float>("out", address(result), true);
    return true;
}

// Whether `tensor` is of one of `types` and memory holds its values as they are.
inline bool is_plain_tensor(const py::tuple& types, PyObject* tensor) {
    static PyObject* const is_negated = interned("is_neg");
    bool known = false;
    for (const py::handle type : types) known = known || (PyObject*)Py_TYPE(tensor) == type.ptr();
    return known && is_false(PyObject_CallMethodNoArgs(tensor, is_negated));
}

inline PlainCall find_plain_call(const py::capsule& capsule, const py::tuple& types, py::handle x, py::handle out,
                                 const Parameters& parameters, bool any_backend, bool recorded) {
    static PyObject* const requires_grad = interned("requires_grad");
    const Table* const table = fastmalade::exchange::table_of(capsule);
    const cpu::Kernels* const kernels = plain_kernels(any_backend);
    PlainCall call;
    if (!table || !kernels || !parameters.complete() || !is_plain_tensor(types, x.ptr())) return call;
    for (int n = 0; n < 10; ++n) {
        if (!is_plain_tensor(types, parameters[n])) return call;
        if (recorded && !is_false(PyObject_GetAttr(parameters[n], requires_grad))) return call;
    }
    if (find_arrays(*table, x, out, parameters, &call)) call.kernels = kernels;
    return call;
}

// capsule: holds the exchange table; types: the classes that tensors may be of; x, out: (B, C, H, W) tensors; modules:
// of the Autoencoder; sample_ids: (B,) or 0. `any_backend`: the environment may name another; `recorded`: autograd
// records what happens to weights that require a gradient; `checked`: x must lie in [0, 1], and the result is looked
// through.
PlainResult plain_chain(const py::capsule& capsule, const py::tuple& types, py::handle x, py::handle out,
                        py::handle modules, const Settings& settings, uint64_t seed, uintptr_t sample_ids, int threads,
                        bool any_backend, bool recorded, bool checked) {
    const Parameters parameters(modules.ptr());
    const PlainCall call = find_plain_call(capsule, types, x, out, parameters, any_backend, recorded);
    if (!call.kernels) return PlainResult::refused;
    if (checked && cpu::first_outside(call.in, call.count(), 0.0f, 1.0f) >= 0) return PlainResult::refused;
    check_least("threads", threads, 1);
    std::vector<int64_t> own_ids;
    const ChainArguments arguments = settings.arguments(
        call.batch, call.in, seed, sample_ids_or_default(sample_ids, call.batch, own_ids), nullptr, call.out, false);
    bool finite = true;
    without_interpreter_lock([&] {
        cpu::langevin_chain(*call.kernels, call.shape, call.weights, arguments, cpu::Form::automatic, threads);
        const float most = std::numeric_limits<float>::max();
        if (checked) finite = cpu::first_outside(call.out, call.count(), -most, most) < 0;
    });
    return finite ? PlainResult::finite : PlainResult::diverged;
}

// How often each parameter has been written to.
inline std::array<int64_t, 10> versions(const Parameters& parameters) {
    static PyObject* const version = interned("_version");
    std::array<int64_t, 10> found{};
    for (int n = 0; n < 10; ++n) found[(size_t)n] = py::handle(parameters[n]).attr(py::handle(version)).cast<int64_t>();
    return found;
}

// A recorded call, and its parameters, for a look at whether they were written to.
struct PlainRecording {
    RecordedCall call;
    const Parameters parameters;
    const std::array<int64_t, 10> versions_then = versions(parameters);

    PlainRecording(const std::shared_ptr<Settings>& settings, const PlainCall& plain, const Parameters& the_parameters,
                   int threads)
        : call(settings, plain.batch, *plain.kernels, plain.shape, cpu::Form::automatic, threads),
          parameters(the_parameters) {}
};

// As plain_chain, recorded; None where that is refused, which it also is where activations would take more than
// `most_bytes`.
std::unique_ptr<PlainRecording> plain_recorded_chain(const py::capsule& capsule, const py::tuple& types, py::handle x,
                                                     py::handle out, py::handle modules,
                                                     const std::shared_ptr<Settings>& settings, uint64_t seed,
                                                     uintptr_t sample_ids, int threads, bool any_backend,
                                                     int64_t most_bytes) {
    const Parameters parameters(modules.ptr());
    const PlainCall call = find_plain_call(capsule, types, x, out, parameters, any_backend, true);
    if (!call.kernels || settings->a.empty()) return nullptr;
    const int64_t record = cpu::gradient_bytes(*call.kernels, call.shape).record;  // of a group of images and a step
    if (call.batch > most_bytes * call.kernels->lanes / record / (int64_t)settings->a.size()) return nullptr;
    check_least("threads", threads, 1);
    auto recording = std::make_unique<PlainRecording>(settings, call, parameters, threads);
    std::vector<int64_t> own_ids;
    const ChainArguments arguments = settings->arguments(
        call.batch, call.in, seed, sample_ids_or_default(sample_ids, call.batch, own_ids), nullptr, call.out, false);
    without_interpreter_lock([&] { cpu::recorded_chain(recording->call.kept, call.weights, arguments, threads); });
    return recording;
}

// cotangent, gradient: (B, C, H, W) tensors. False where the cotangent is not plain; an error where a weight has been
// written to since.
bool plain_chain_reverse(const PlainRecording& recording, const py::capsule& capsule, const py::tuple& types,
                         py::handle cotangent, py::handle gradient, int threads) {
    if (versions(recording.parameters) != recording.versions_then) {
        throw std::runtime_error(
            "langevin_chain: expected the autoencoder's weights of the forward pass, got weights that "
            "were modified in place since");
    }
    const Table* const table = fastmalade::exchange::table_of(capsule);
    const cpu::KeptChain& kept = recording.call.kept;
    fastmalade::exchange::Tensor from, to;
    if (!table || !is_plain_tensor(types, cotangent.ptr()) || !read_plain(*table, cotangent, 4, &from)) return false;
    const uintptr_t from_address = address(from);
    const int64_t expected[4] = {kept.batch, kept.shape.channels, kept.shape.height, kept.shape.width};
    if (!std::equal(expected, expected + 4, from.shape)) fail("cotangent", "the shape of the result", "another");
    if (!read_plain(*table, gradient, 4, &to)) return false;
    if (!std::equal(expected, expected + 4, to.shape)) fail("gradient", "the shape of the result", "another");
    check_least("threads", threads, 1);
    const float* const in = pointer<const float>("cotangent", from_address, true);
    float* const out = pointer<float>("gradient", address(to), true);
    const ChainArguments arguments = recording.call.reverse_arguments();
    without_interpreter_lock([&] { cpu::chain_reverse(kept, arguments, in, out, threads); });
    return true;
}

}  // namespace
