// A chain whose activations are kept for its gradient.
#pragma once

#include <memory>
#include <utility>

#include "cpu_arguments.h"

#include "cpu/host/engine.h"

namespace {

// A call of recorded_chain, for chain_reverse.
struct RecordedCall {
    const std::shared_ptr<const Settings> settings;
    cpu::KeptChain kept;

    RecordedCall(std::shared_ptr<const Settings> the_settings, int64_t batch, const cpu::Kernels& kernels,
                 const AutoencoderShape& shape, cpu::Form form, int threads)
        : settings(std::move(the_settings)), kept(kernels, shape, batch, (int64_t)settings->a.size(), form, threads) {}

    // For chain_reverse, which needs the settings alone.
    ChainArguments reverse_arguments() const {
        return settings->arguments(kept.batch, nullptr, 0, nullptr, nullptr, nullptr, false);
    }
};

}  // namespace
