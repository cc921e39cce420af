// The cache of packed models: weights in the order in which the kernels read them, kept between calls.
//
// Every call brings the weights as plain arrays, and someone may have written to them since the last call without
// leaving a trace (`.data`, a numpy view). So an entry is found by content: the raw weights are compared byte by byte
// with the copy that the entry was packed from. For the model of 10 and 25 hidden channels that is about 110 kB and
// takes a few microseconds.
#pragma once

#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/host/memory.h"

namespace fastmalade::cpu {

// One model packed for one instruction set; each part is packed when it is first needed.
class PackedModel {
public:
    // Copies the weights, so that what is packed later is what was compared.
    PackedModel(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights);

    bool same(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights) const;

    // What one form reads; `transposes` is null unless asked for.
    struct Arrays {
        const float *layers, *transposes;
    };
    Arrays form(FormIndex index, bool transposes);
    int64_t most_bytes() const { return most_bytes_; }  // the copy and everything packed

private:
    struct PackedForm {
        Buffer layers, transposes;
    };

    const Kernels& kernels_;
    const AutoencoderShape shape_;  // height and width are those of the first call; others may be packed alike
    std::vector<float> raw_;
    const int64_t most_bytes_;
    std::mutex packing_;
    PackedForm packed_[form_count];
};

// The model from the cache, or a new one, which is cached unless it is too large. A model that a call holds lives until
// that call ends, even if the cache drops it.
std::shared_ptr<PackedModel> cached_model(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights);

struct PackedCacheInfo {
    int64_t entries, most_entries;
    int64_t bytes;             // of the entries, once all their parts are packed
    int64_t most_entry_bytes;  // larger models are packed again at every call
    int64_t hits, misses;      // of this process
};
PackedCacheInfo packed_cache_info();

}  // namespace fastmalade::cpu
