// A chain whose activations are kept for its gradient.
#pragma once

#include <memory>
#include <utility>

#include "cpu_model.h"

namespace {

// A call of recorded_chain, for chain_reverse.
struct RecordedCall {
    const std::shared_ptr<const Steps> steps;
    cpu::KeptChain kept;
    const py::tuple tensors;                   // the weights, where the caller gave tensors
    const std::vector<int64_t> versions_then;  // how often each had been written to

    RecordedCall(std::shared_ptr<const Steps> the_steps, const Model& model, const cpu::Kernels& kernels,
                 cpu::Form form, int threads)
        : steps(std::move(the_steps)),
          kept(kernels, model.shape, model.batch, steps->count(), form, threads),
          tensors(model.tensors),
          versions_then(versions(model.tensors)) {}

    bool weights_written_to() const { return versions(tensors) != versions_then; }
};

}  // namespace
