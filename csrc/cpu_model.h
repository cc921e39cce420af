// What most calls of fastmalade._cpu take: a batch of images and the ten weights of a Table 8 autoencoder.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "cpu_arguments.h"
#include "dlpack_table.h"

namespace {

// Addresses, checked once. The caller keeps the images alive, and the weights where there are addresses of them alone.
struct Model {
    AutoencoderShape shape;
    AutoencoderWeights weights;
    int64_t batch;
    const float* x;     // (batch, channels, height, width)
    py::tuple tensors;  // the ten weights, kept alive where the caller gave tensors

    int64_t count() const { return batch * shape.channels * shape.height * shape.width; }
};

// sizes: (channels, height, width, hidden1, hidden2); weight_addresses: 10; x: (batch, channels, height, width)
Model make_model(int64_t batch, const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses,
                 uintptr_t x) {
    check_least("batch", batch, 0);
    return {check_shape(sizes), check_weights(weight_addresses), batch, pointer<const float>("x", x, batch > 0),
            py::tuple()};
}

// Whether a tensor is of one of `types` and memory holds its values as they are: not negated, in torch's words.
bool is_plain_tensor(const py::tuple& types, PyObject* tensor) {
    static PyObject* const is_negated = PyUnicode_InternFromString("is_neg");
    bool known = false;
    for (const py::handle type : types) known = known || (PyObject*)Py_TYPE(tensor) == type.ptr();
    if (!known) return false;
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, is_negated));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_False;
}

// The model of tensors, where every one of them is plain and of the right shape; else None, and the caller finds out
// which is not. capsule: holds the table; types: the classes that plain tensors are of; x: (B, C, H, W); weights: a
// tuple of ten
py::object read_model(const py::capsule& capsule, const py::tuple& types, py::handle x, const py::tuple& weights) {
    using namespace fastmalade::dlpack;
    const Table* const table = table_of(capsule);
    Tensor images, array;
    if (!table || weights.size() != 10 || !is_plain_tensor(types, x.ptr())) return py::none();
    if (!read_plain(*table, x, 4, &images)) return py::none();
    const int64_t batch = images.shape[0], channels = images.shape[1];
    const int64_t height = images.shape[2], width = images.shape[3];
    const uintptr_t images_at = address(images);
    if (height % 4 != 0 || width % 4 != 0) return py::none();
    int64_t hidden1 = 0, hidden2 = 0;
    std::vector<uintptr_t> addresses(10);
    for (size_t n = 0; n < 10; ++n) {
        const bool is_bias = n % 2 == 1;
        if (!is_plain_tensor(types, PyTuple_GET_ITEM(weights.ptr(), (Py_ssize_t)n))) return py::none();
        if (!read_plain(*table, weights[n], is_bias ? 1 : 4, &array)) return py::none();
        if (n == 0) hidden1 = array.shape[0];
        if (n == 2) hidden2 = array.shape[0];
        const int64_t expected[10][4] = {{hidden1, channels, 5, 5},  {hidden1}, {hidden2, hidden1, 5, 5},  {hidden2},
                                         {hidden2, hidden1, 9, 9},   {hidden1}, {hidden1, channels, 1, 1}, {channels},
                                         {channels, channels, 5, 5}, {channels}};
        for (int32_t axis = 0; axis < array.ndim; ++axis) {
            if (array.shape[axis] != expected[n][axis]) return py::none();
        }
        addresses[n] = address(array);
    }
    Model model = make_model(batch, {channels, height, width, hidden1, hidden2}, addresses, images_at);
    model.tensors = weights;
    return py::cast(std::move(model));
}

// How often each of the tensors was written to.
std::vector<int64_t> versions(const py::tuple& tensors) {
    static PyObject* const version = PyUnicode_InternFromString("_version");
    std::vector<int64_t> found;
    found.reserve(tensors.size());
    for (const py::handle tensor : tensors) {
        const auto number = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), version));
        if (!number) throw py::error_already_set();
        found.push_back(PyLong_AsLongLong(number.ptr()));
    }
    return found;
}

// Whether any of the tensors requires a gradient.
bool requires_grad(const Model& model) {
    static PyObject* const attribute = PyUnicode_InternFromString("requires_grad");
    for (const py::handle tensor : model.tensors) {
        const auto answer = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), attribute));
        if (!answer) throw py::error_already_set();
        if (answer.ptr() == Py_True) return true;
    }
    return false;
}

}  // namespace
