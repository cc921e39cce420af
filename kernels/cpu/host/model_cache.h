// Models in the order in which the kernels read them, kept between calls.
//
// Weights arrive as plain arrays at every call, and any of their owners may have written to them in between without
// leaving a trace (`.data`, a numpy view). So an entry is found by content: the raw weights are compared byte by byte
// with the copy that the entry was packed from. For the 10-25 model that is about 110 kB, a few microseconds.
#pragma once

#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/host/memory.h"

namespace fastmalade::cpu {

// One model packed for one instruction set, each part when it is first wanted.
class PackedModel {
public:
    // Copies the weights: what is packed later is what was compared.
    PackedModel(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights);

    bool same(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights) const;

    // What one form reads; `transposes` is null unless they are wanted.
    struct Arrays {
        const float *layers, *transposes;
    };
    Arrays form(FormIndex index, bool transposes);
    int64_t most_bytes() const { return most_bytes_; }  // the copy and all that is ever packed

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

// The model from the cache, or a new one, which is then kept if it is not too large. An entry that a call holds lives
// on until that call ends, whatever the cache does with it.
std::shared_ptr<PackedModel> packed_model(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights);

struct PackedCacheInfo {
    int64_t entries, most_entries;
    int64_t bytes;             // that the entries take once all of them is packed
    int64_t most_entry_bytes;  // a larger model is packed for each call anew
    int64_t hits, misses;      // of this process
};
PackedCacheInfo packed_cache_info();

}  // namespace fastmalade::cpu
