// See model_cache.h.
#include "cpu/host/model_cache.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

namespace fastmalade::cpu {
namespace {

constexpr size_t kMostEntries = 8;
constexpr int64_t kMostEntryBytes = 128 << 20;  // hidden layers of some 160 and 200 channels
constexpr int64_t kMostBytes = 256 << 20;       // of all entries; beyond it the oldest go

struct Array {
    const float* values;
    int64_t count;
};

std::array<Array, 10> arrays(const AutoencoderShape& s, const AutoencoderWeights& w) {
    return {{{w.conv1_weight, s.hidden1 * s.channels * 25},
             {w.conv1_bias, s.hidden1},
             {w.conv2_weight, s.hidden2 * s.hidden1 * 25},
             {w.conv2_bias, s.hidden2},
             {w.deconv1_weight, s.hidden2 * s.hidden1 * 81},
             {w.deconv1_bias, s.hidden1},
             {w.deconv2_weight, s.hidden1 * s.channels},
             {w.deconv2_bias, s.channels},
             {w.conv3_weight, s.channels * s.channels * 25},
             {w.conv3_bias, s.channels}}};
}

// The arrays in one contiguous copy of them.
AutoencoderWeights weights_in(const AutoencoderShape& s, const float* raw) {
    const float* at[10];
    size_t n = 0;
    for (const Array& array : arrays(s, AutoencoderWeights{})) {
        at[n++] = raw;
        raw += array.count;
    }
    return AutoencoderWeights::of(at);
}

class PackedCache {
public:
    std::shared_ptr<PackedModel> find(const Kernels& kernels, const AutoencoderShape& shape,
                                      const AutoencoderWeights& weights) {
        std::array<std::shared_ptr<PackedModel>, kMostEntries> entries;  // compared without the lock
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            std::copy(entries_.begin(), entries_.end(), entries.begin());
        }
        for (const std::shared_ptr<PackedModel>& entry : entries) {
            if (!entry || !entry->same(kernels, shape, weights)) continue;
            const std::lock_guard<std::mutex> lock(mutex_);
            ++hits_;
            move_to_front(entry);
            return entry;
        }
        std::shared_ptr<PackedModel> fresh = std::make_shared<PackedModel>(kernels, shape, weights);
        std::vector<std::shared_ptr<PackedModel>> evicted;  // freed after the lock
        const std::lock_guard<std::mutex> lock(mutex_);
        ++misses_;
        if (fresh->most_bytes() > kMostEntryBytes) return fresh;
        // Two threads that missed at once leave two equal entries. The older is not found again and ages out.
        entries_.insert(entries_.begin(), fresh);
        while (entries_.size() > kMostEntries || bytes() > kMostBytes) {
            evicted.push_back(std::move(entries_.back()));
            entries_.pop_back();
        }
        return fresh;
    }

    PackedCacheInfo info() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return PackedCacheInfo{
            (int64_t)entries_.size(), (int64_t)kMostEntries, bytes(), kMostEntryBytes, hits_, misses_};
    }

private:
    int64_t bytes() const {
        int64_t sum = 0;
        for (const auto& entry : entries_) sum += entry->most_bytes();
        return sum;
    }
    void move_to_front(const std::shared_ptr<PackedModel>& entry) {
        const auto at = std::find(entries_.begin(), entries_.end(), entry);
        if (at != entries_.end()) std::rotate(entries_.begin(), at, at + 1);
    }

    std::mutex mutex_;
    std::vector<std::shared_ptr<PackedModel>> entries_;  // most recently used first
    int64_t hits_ = 0, misses_ = 0;
};

// Like the pool it is made on first use and never destroyed. The child of a fork leaves it behind, because its lock may
// be held by a thread that does not exist there.
std::atomic<PackedCache*> the_cache{nullptr};

PackedCache& cache() {
    PackedCache* existing = the_cache.load(std::memory_order_acquire);
    if (existing) return *existing;
    PackedCache* fresh = new PackedCache;
    if (the_cache.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
    return *existing;
}

[[maybe_unused]] const int forget_cache_in_children =
    pthread_atfork(nullptr, nullptr, [] { the_cache.store(nullptr, std::memory_order_release); });

}  // namespace

PackedModel::PackedModel(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights)
    : kernels_(kernels), shape_(shape), most_bytes_([&] {
          int64_t raw = 0;
          for (const Array& array : arrays(shape, weights)) raw += array.count;
          int64_t bytes = raw * (int64_t)sizeof(float);
          for (const FormKernels& form : kernels.forms) {
              bytes += buffer_bytes(form.packed_floats(shape)) + buffer_bytes(form.transpose_floats(shape));
          }
          return bytes;
      }()) {
    for (const Array& array : arrays(shape, weights)) raw_.insert(raw_.end(), array.values, array.values + array.count);
}

bool PackedModel::same(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights) const {
    if (&kernels != &kernels_ || shape.channels != shape_.channels || shape.hidden1 != shape_.hidden1 ||
        shape.hidden2 != shape_.hidden2 || kernels.packing(shape) != kernels.packing(shape_)) {
        return false;
    }
    const float* raw = raw_.data();
    for (const Array& array : arrays(shape, weights)) {
        if (std::memcmp(raw, array.values, (size_t)array.count * sizeof(float)) != 0) return false;
        raw += array.count;
    }
    return true;
}

PackedModel::Arrays PackedModel::form(FormIndex index, bool transposes) {
    const FormKernels& kernels = kernels_.forms[index];
    PackedForm& packed = packed_[index];
    const std::lock_guard<std::mutex> lock(packing_);
    if (!packed.layers) {
        Buffer fresh = allocate(kernels.packed_floats(shape_));
        kernels.pack(shape_, weights_in(shape_, raw_.data()), fresh.get());
        packed.layers = std::move(fresh);
    }
    if (transposes && !packed.transposes) {
        Buffer fresh = allocate(kernels.transpose_floats(shape_));
        kernels.pack_transposes(shape_, weights_in(shape_, raw_.data()), fresh.get());
        packed.transposes = std::move(fresh);
    }
    return Arrays{packed.layers.get(), transposes ? packed.transposes.get() : nullptr};
}

std::shared_ptr<PackedModel> cached_model(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights) {
    return cache().find(kernels, shape, weights);
}

PackedCacheInfo packed_cache_info() { return cache().info(); }

}  // namespace fastmalade::cpu
