// What the lanes of a warp hand each other, and how they meet.
#pragma once

#include <stdint.h>

#include <vector>

#if defined(FASTMALADE_EMULATION_THREADS)
#include <sched.h>
#endif

namespace fastmalade::cuda::emulation {

constexpr int kLanes = 32, kLaneWords = 96;

// Two sets in turn: a lane that goes on to the next meeting writes the other set, and comes to the one after only once
// all have met again, done with this set.
struct Exchange {
    float words[2][kLanes][kLaneWords];
    int arrived = 0;
    unsigned round = 0;
};

#if defined(FASTMALADE_EMULATION_THREADS)

// ThreadSanitizer must not see it: on a GPU a product of the warp orders no access to memory, and a barrier that is
// missing has to be missed although lanes have met.
__attribute__((noinline, no_sanitize("thread"))) inline void meet(Exchange& warp) {
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
