// Aligned memory for the engine, and the working memory that every thread keeps between calls.
#pragma once

#include <stdint.h>

#include <cstdlib>
#include <memory>
#include <new>

namespace fastmalade::cpu {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

struct FreeDeleter {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, FreeDeleter>;

// Bytes that a Buffer of `floats` takes.
inline int64_t buffer_bytes(int64_t floats) {
    const int64_t bytes = (floats * (int64_t)sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    return bytes > kAlignment ? bytes : kAlignment;
}

// (floats,), content undefined; throws std::bad_alloc
inline Buffer allocate(int64_t floats) {
    float* memory = static_cast<float*>(std::aligned_alloc(kAlignment, (size_t)buffer_bytes(floats)));
    if (!memory) throw std::bad_alloc();
    return Buffer(memory);
}

// Working memory of one thread. The allocator gets blocks of hundreds of kilobytes straight from the system: a thread
// that freed its block after each call would fault in every page again at the next. So it keeps it, unless it is large.
class ThreadMemory {
public:
    static constexpr int64_t kMostKeptBytes = 64 << 20;
    static constexpr int64_t kSmallBytes = 16 << 20;  // kept, however little the next call needs

    // (floats,), 64-byte aligned, any content; valid until the next call of this function or of `trim`
    float* take(int64_t floats) {
        const int64_t needed = buffer_bytes(floats);
        const bool far_too_large = bytes_ > kSmallBytes && bytes_ / 4 > needed;
        if (bytes_ < needed || far_too_large) {
            release();  // first, so that both never exist together
            buffer_ = allocate(floats);
            bytes_ = needed;
        }
        return buffer_.get();
    }

    void trim() {
        if (bytes_ > kMostKeptBytes) release();
    }

private:
    void release() {
        buffer_.reset();
        bytes_ = 0;
    }

    Buffer buffer_;
    int64_t bytes_ = 0;
};

// That of the calling thread, freed when the thread ends.
inline ThreadMemory& thread_memory() {
    static thread_local ThreadMemory scratch;
    return scratch;
}

// Memory that the next owner takes over: a gradient uses the block that the last one left, and the system does not take
// the pages back in between. Owners may be destroyed on any thread; each thread keeps one spare block.
class RecycledMemory {
public:
    static constexpr int64_t kMostKeptBytes = 16 << 20;

    // (floats,), 64-byte aligned, any content
    explicit RecycledMemory(int64_t floats) : bytes_(buffer_bytes(floats)) {
        Spare& kept = spare();
        if (kept.bytes >= bytes_ && kept.bytes / 4 <= bytes_) {
            bytes_ = kept.bytes;
            kept.bytes = 0;
            buffer_ = std::move(kept.buffer);
        } else {
            buffer_ = allocate(floats);
        }
    }
    ~RecycledMemory() {
        Spare& kept = spare();
        if (bytes_ > kMostKeptBytes || bytes_ < kept.bytes) return;
        kept.buffer = std::move(buffer_);
        kept.bytes = bytes_;
    }
    RecycledMemory(const RecycledMemory&) = delete;
    RecycledMemory& operator=(const RecycledMemory&) = delete;

    float* get() const { return buffer_.get(); }

private:
    struct Spare {
        Buffer buffer;
        int64_t bytes = 0;
    };
    static Spare& spare() {
        static thread_local Spare kept;
        return kept;
    }

    Buffer buffer_;
    int64_t bytes_;
};

}  // namespace fastmalade::cpu
