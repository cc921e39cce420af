// Reading addresses, shapes and strides of tensors through the table of C functions that a tensor library may offer
// (DLPack 1.3, "C exchange API"): one call instead of a dozen attributes of each tensor. Only what is read here is
// declared; the layout of the structures is fixed by DLPack's major version.
#pragma once

#include <pybind11/pybind11.h>

#include <stdint.h>

namespace fastmalade::dlpack {

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

}  // namespace fastmalade::dlpack
