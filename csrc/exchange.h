// Reading addresses, shapes and strides of tensors through the table of C functions that a tensor library may offer
// (DLPack 1.3, "C exchange API"): one call instead of a dozen attributes of each tensor. Only what is read here is
// declared; the layout of the structures is fixed by DLPack's major version.
#pragma once

#include <pybind11/pybind11.h>

#include <stdint.h>

#include <algorithm>
#include <array>

namespace fastmalade::exchange {

struct Tensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;    // (ndim,), the library's own
    int64_t* strides;  // (ndim,), in elements
    uint64_t byte_offset;
};

struct Table {
    uint32_t major, minor;
    const void* previous;
    const void* not_used_here[3];
    int (*read)(void* object, Tensor* out);  // borrowed: nothing to give back
};

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2;

// The table in a capsule, or null where it is of another major version or offers no such function.
inline const Table* table_of(const pybind11::capsule& capsule) {
    const Table* table = static_cast<const Table*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw pybind11::error_already_set();
    return table->major == kMajor && table->read ? table : nullptr;
}

// Whether `object` is a contiguous float32 array on the CPU with as many dimensions, which then is described in `out`.
inline bool read_plain(const Table& table, pybind11::handle object, int32_t ndim, Tensor* out) {
    if (table.read(object.ptr(), out) != 0) {
        PyErr_Clear();  // the caller looks again, the long way, and says what is wrong
        return false;
    }
    if (out->device_type != kCpu || out->code != kFloat || out->bits != 32 || out->lanes != 1) return false;
    if (out->ndim != ndim || !out->data || !out->strides) return false;
    int64_t dense = 1;
    for (int32_t n = ndim - 1; n >= 0; --n) {
        if (out->shape[n] != 1 && out->strides[n] != dense) return false;
        dense *= out->shape[n];
    }
    return dense > 0;
}

inline uintptr_t address(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset; }

// The sizes of images and of an autoencoder, and where its arrays lie.
struct Model {
    int64_t sizes[5];  // channels, height, width, hidden1, hidden2
    uintptr_t weights[10];
};

// Fills `model` from images (B, C, H, W) that were read and from the ten weights that `weight(n)` gives, where every
// one of them is a plain array of the right shape; else false.
template <class Weight>
bool read_weights(const Table& table, const Tensor& images, Weight weight, Model* model) {
    Tensor array;
    const int64_t channels = images.shape[1];
    int64_t hidden1 = 0, hidden2 = 0;
    for (int n = 0; n < 10; ++n) {
        const bool is_bias = n % 2 == 1;
        if (!read_plain(table, weight(n), is_bias ? 1 : 4, &array)) return false;
        if (n == 0) hidden1 = array.shape[0];
        if (n == 2) hidden2 = array.shape[0];
        const int64_t expected[10][4] = {{hidden1, channels, 5, 5},  {hidden1}, {hidden2, hidden1, 5, 5},  {hidden2},
                                         {hidden2, hidden1, 9, 9},   {hidden1}, {hidden1, channels, 1, 1}, {channels},
                                         {channels, channels, 5, 5}, {channels}};
        for (int32_t axis = 0; axis < array.ndim; ++axis) {
            if (array.shape[axis] != expected[n][axis]) return false;
        }
        model->weights[n] = address(array);
    }
    const int64_t sizes[5] = {channels, images.shape[2], images.shape[3], hidden1, hidden2};
    std::copy(sizes, sizes + 5, model->sizes);
    return true;
}

// x and the ten weights of a call as (address of x, sizes, addresses of the weights), where every one is a plain array
// of the right shape; else None, and the caller finds out which is not. capsule: holds the table
inline pybind11::object read_model(const pybind11::capsule& capsule, pybind11::handle x,
                                   const pybind11::sequence& weights) {
    namespace py = pybind11;
    const Table* table = table_of(capsule);
    Tensor images;
    Model model;
    if (!table || weights.size() != 10 || !read_plain(*table, x, 4, &images)) return py::none();
    const uintptr_t images_at = address(images);
    std::array<py::object, 10> held;
    const auto weight = [&](int n) -> py::handle { return held[(size_t)n] = weights[(size_t)n]; };
    if (!read_weights(*table, images, weight, &model)) return py::none();
    const py::list sizes(5), addresses(10);
    for (size_t n = 0; n < 5; ++n) sizes[n] = model.sizes[n];
    for (size_t n = 0; n < 10; ++n) addresses[n] = model.weights[n];
    return py::make_tuple(images_at, sizes, addresses);
}

}  // namespace fastmalade::exchange
