// The set of CPUs that a thread may use.
#pragma once

#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastmalade::cpu {

#if defined(__linux__)

class CpuMask {
public:
    // The calling thread's mask. On a system with more CPUs than fit (4096) it is not known: then the count comes from
    // the standard library, and `apply` leaves threads where they are.
    static CpuMask current() {
        CpuMask mask;
        std::memset(mask.sets_, 0, sizeof mask.sets_);
        mask.known_ = sched_getaffinity(0, sizeof mask.sets_, mask.sets_) == 0;
        // The standard library's count reads a system file at every call, which takes ten microseconds.
        mask.count_ =
            mask.known_ ? CPU_COUNT_S(sizeof mask.sets_, mask.sets_) : (int)std::thread::hardware_concurrency();
        if (mask.count_ < 1) mask.count_ = 1;
        return mask;
    }

    int count() const { return count_; }

    bool operator==(const CpuMask& other) const {
        return known_ == other.known_ && std::memcmp(sets_, other.sets_, sizeof sets_) == 0;
    }

    bool overlaps(const CpuMask& other) const {
        if (!known_ || !other.known_) return true;
        const unsigned char* a = reinterpret_cast<const unsigned char*>(sets_);
        const unsigned char* b = reinterpret_cast<const unsigned char*>(other.sets_);
        for (size_t n = 0; n < sizeof sets_; ++n) {
            if (a[n] & b[n]) return true;
        }
        return false;
    }

    // Moves the calling thread onto this set; false where the system refuses.
    bool apply() const { return !known_ || sched_setaffinity(0, sizeof sets_, sets_) == 0; }

private:
    cpu_set_t sets_[4096 / CPU_SETSIZE];
    bool known_;
    int count_;
};

#else

// Systems without masks: every thread may use every CPU.
class CpuMask {
public:
    static CpuMask current() { return CpuMask(); }
    int count() const {
        const int cpus = (int)std::thread::hardware_concurrency();
        return cpus < 1 ? 1 : cpus;
    }
    bool operator==(const CpuMask&) const { return true; }
    bool overlaps(const CpuMask&) const { return true; }
    bool apply() const { return true; }
};

#endif

}  // namespace fastmalade::cpu
