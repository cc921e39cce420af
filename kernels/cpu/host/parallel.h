// A loop over tasks on the threads of cpu/host/pool.h.
#pragma once

#include <exception>
#include <mutex>

#include "cpu/host/pool.h"

namespace fastmalade::cpu {

// Calls work(tasks) on up to `threads` threads, the calling one included, and never on more threads than tasks. The
// first exception that `work` throws on any thread is rethrown here once all threads have finished.
template <class F>
void parallel_for(int64_t count, int threads, F work) {
    struct Shared {
        F& work;
        std::mutex failure_lock;
        std::exception_ptr failure;
    };
    Shared shared{work, {}, nullptr};
    const Work guarded = [](void* context, TaskSource& tasks) {
        Shared& all = *static_cast<Shared*>(context);
        try {
            all.work(tasks);
        } catch (...) {
            tasks.stop();
            const std::lock_guard<std::mutex> lock(all.failure_lock);
            if (!all.failure) all.failure = std::current_exception();
        }
    };
    run_tasks(count, threads, guarded, &shared);
    if (shared.failure) std::rethrow_exception(shared.failure);
}

}  // namespace fastmalade::cpu
