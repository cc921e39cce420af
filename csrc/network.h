// Finding the ten weights of a network that is exactly Table 8, by the definition in fastmalade/models/table8.py.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu_model.h"

namespace {

// A name that lives as long as the interpreter, so that looking it up compares addresses.
PyObject* interned(const py::handle& name) {
    PyObject* text = name.ptr();
    Py_INCREF(text);
    PyUnicode_InternInPlace(&text);
    return text;
}

// The classes of plain tensors, the definition, and the table that tensors are read with.
class NetworkReader {
public:
    // table: of DLPack; types: the classes that plain tensors are of; definition: a Definition of table8.py
    NetworkReader(py::capsule table, py::tuple types, const py::object& definition)
        : table_(std::move(table)), types_(std::move(types)), network_(definition.attr("network")) {
        const auto layers = definition.attr("layers").cast<py::dict>();
        kinds_.emplace_back(network_.kind, definition.attr("network").attr("forward"));
        for (const auto& [name, rule] : layers) {
            layers_.emplace_back(interned(name), Rule(rule));
            const py::object& kind = layers_.back().second.kind;
            const bool known = std::any_of(kinds_.begin(), kinds_.end(), [&](auto& k) { return k.first.is(kind); });
            if (!known) kinds_.emplace_back(kind, rule.attr("forward"));
        }
        for (const py::handle name : definition.attr("own")) own_.push_back(interned(name));
        for (const py::handle hooks : definition.attr("hooks")) hooks_.append(hooks);
    }

    // The model of plain images x (B, C, H, W) and of the network's weights, which it keeps alive; None where the
    // network is not exactly Table 8 or a tensor is not plain.
    py::object read(py::handle x, py::handle network) const {
        static PyObject* const modules = PyUnicode_InternFromString("_modules");
        for (const py::handle hooks : hooks_) {
            if (PyDict_GET_SIZE(hooks.ptr()) > 0) return py::none();
        }
        for (const auto& [kind, computes] : kinds_) {
            const auto now = py::reinterpret_steal<py::object>(PyObject_GetAttr(kind.ptr(), forward_));
            if (now.ptr() != computes.ptr()) return py::none();
        }
        const py::object own = attributes_of(network);
        if (!own || !network_.holds(network, own, own_)) return py::none();
        PyObject* const all = PyDict_GetItemWithError(own.ptr(), modules);
        py::tuple weights(2 * layers_.size());
        for (size_t n = 0; all && n < layers_.size(); ++n) {
            const auto layer = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(all, layers_[n].first));
            if (!layer || !find(layer, layers_[n].second, &weights, 2 * n)) return py::none();
        }
        return all ? read_model(table_, types_, x, weights) : py::none();
    }

private:
    struct Rule {
        py::object kind;
        std::vector<std::pair<PyObject*, py::object>> attributes;

        explicit Rule(const py::handle& rule) : kind(rule.attr("kind")) {
            for (const auto& [name, value] : rule.attr("attributes").cast<py::dict>()) {
                attributes.emplace_back(interned(name), py::reinterpret_borrow<py::object>(value));
            }
        }

        // own: `__dict__` of the module; foreign: the names that must not be in it
        bool holds(py::handle module, const py::object& own, const std::vector<PyObject*>& foreign) const {
            if ((PyObject*)Py_TYPE(module.ptr()) != kind.ptr()) return false;
            for (PyObject* const name : foreign) {
                if (PyDict_GetItemWithError(own.ptr(), name)) return false;
            }
            for (const auto& [name, expected] : attributes) {
                PyObject* const value = PyDict_GetItemWithError(own.ptr(), name);
                if (!value) return false;
                const bool both_empty = PyDict_Check(value) && PyDict_Check(expected.ptr()) &&
                                        PyDict_GET_SIZE(value) == 0 && PyDict_GET_SIZE(expected.ptr()) == 0;
                if (!both_empty && PyObject_RichCompareBool(value, expected.ptr(), Py_EQ) != 1) {
                    PyErr_Clear();  // what cannot be compared is not equal
                    return false;
                }
            }
            return true;
        }
    };

    static py::object attributes_of(py::handle module) {
        const auto own = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
        if (!own) PyErr_Clear();
        return own;
    }

    // Puts weight and bias of a layer in their places.
    bool find(const py::object& layer, const Rule& rule, py::tuple* weights, size_t place) const {
        static PyObject* const parameters = PyUnicode_InternFromString("_parameters");
        const py::object own = attributes_of(layer);
        if (!own || !rule.holds(layer, own, own_)) return false;
        PyObject* const tensors = PyDict_GetItemWithError(own.ptr(), parameters);
        for (PyObject* const name : {weight_, bias_}) {
            PyObject* const tensor = tensors ? PyDict_GetItemWithError(tensors, name) : nullptr;
            if (!tensor) return false;
            (*weights)[place++] = py::reinterpret_borrow<py::object>(tensor);
        }
        return true;
    }

    PyObject* const weight_ = PyUnicode_InternFromString("weight");
    PyObject* const forward_ = PyUnicode_InternFromString("forward");
    PyObject* const bias_ = PyUnicode_InternFromString("bias");
    py::capsule table_;
    py::tuple types_;
    Rule network_;
    std::vector<std::pair<py::object, py::object>> kinds_;  // classes, and what each computes with
    std::vector<std::pair<PyObject*, Rule>> layers_;
    std::vector<PyObject*> own_;
    py::list hooks_;
};

}  // namespace
