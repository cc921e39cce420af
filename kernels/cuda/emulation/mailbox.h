// Where the lanes of a warp put what they hand each other, and how they meet.
#pragma once

#include <stdint.h>

#include <vector>

#if defined(FASTMALADE_EMULATION_THREADS)
#include <sched.h>
#endif

namespace fastmalade::cuda::emulation {

constexpr int kLanes = 32, kLaneWords = 96;

// Two sets of words in turn: a lane that goes on to the next meeting writes the other set, and it cannot come to the
// one after before all lanes have met again, done with this set.
struct Mailbox {
    float words[2][kLanes][kLaneWords];
    int arrived = 0;
    unsigned round = 0;
};

#if defined(FASTMALADE_EMULATION_THREADS)

// Hidden from ThreadSanitizer: on a GPU a product of the warp orders no access to memory, so a barrier that is missing
// has to show although lanes have met.
__attribute__((noinline, no_sanitize("thread"))) inline void meet(Mailbox& warp) {
    const unsigned round = __atomic_load_n(&warp.round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&warp.arrived, 1, __ATOMIC_ACQ_REL) == kLanes) {
        __atomic_store_n(&warp.arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&warp.round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    while (__atomic_load_n(&warp.round, __ATOMIC_ACQUIRE) == round) sched_yield();
}

#endif

}  // namespace fastmalade::cuda::emulation
