// Aligned memory of the engine, and the working memory that every thread keeps between calls.
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

// Bytes that `floats` take in a Buffer.
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

// Working memory of one thread. A block of hundreds of kilobytes comes straight from the system, and a thread that gave
// it back at the end of each call would fault every page in again at the next; so it is kept, unless it is large.
class ThreadMemory {
public:
    static constexpr int64_t kMostKeptBytes = 64 << 20;
    static constexpr int64_t kSmallBytes = 16 << 20;  // not worth giving back, however little the next call needs

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

// That of the calling thread, given back when the thread ends.
inline ThreadMemory& thread_memory() {
    static thread_local ThreadMemory scratch;
    return scratch;
}

// Memory whose owner may end on any thread, handed on to the next owner that this thread makes: what one gradient
// leaves the next one takes, without the system taking the pages back in between. One block for each thread.
class HandedOn {
public:
    static constexpr int64_t kMostKeptBytes = 16 << 20;

    // (floats,), 64-byte aligned, any content
    explicit HandedOn(int64_t floats) : bytes_(buffer_bytes(floats)) {
        Spare& kept = spare();
        if (kept.bytes >= bytes_ && kept.bytes / 4 <= bytes_) {
            bytes_ = kept.bytes;
            kept.bytes = 0;
            buffer_ = std::move(kept.buffer);
        } else {
            buffer_ = allocate(floats);
        }
    }
    ~HandedOn() {
        Spare& kept = spare();
        if (bytes_ > kMostKeptBytes || bytes_ < kept.bytes) return;
        kept.buffer = std::move(buffer_);
        kept.bytes = bytes_;
    }
    HandedOn(const HandedOn&) = delete;
    HandedOn& operator=(const HandedOn&) = delete;

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
