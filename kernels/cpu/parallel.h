// Threads for one call. They are started for it and joined before it returns: nothing outlives the call, so a process
// may fork between calls, and callers on several Python threads do not share any state.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <stdint.h>

namespace fastmalade::cpu {

// Hands out task numbers 0 .. count-1, each once, to whichever thread asks.
class TaskSource {
public:
    explicit TaskSource(int64_t count) : count_(count) {}
    // The next task, or -1 when none is left or a thread has failed.
    int64_t next() {
        const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
        return task < count_ && !stopped_.load(std::memory_order_relaxed) ? task : -1;
    }
    void stop() { stopped_.store(true, std::memory_order_relaxed); }

private:
    const int64_t count_;
    std::atomic<int64_t> next_{0};
    std::atomic<bool> stopped_{false};
};

// Calls work(tasks) on up to `threads` threads, the calling one included, and never on more than there are tasks. The
// first exception that leaves `work` on any thread is thrown again here after all have ended.
template <class Work>
void parallel_for(int64_t count, int threads, Work work) {
    TaskSource tasks(count);
    if (count <= 1 || threads <= 1) {
        if (count > 0) work(tasks);
        return;
    }
    std::mutex failure_lock;
    std::exception_ptr failure;
    const auto guarded = [&]() {
        try {
            work(tasks);
        } catch (...) {
            tasks.stop();
            const std::lock_guard<std::mutex> lock(failure_lock);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    const int64_t wanted = (count < threads ? count : threads) - 1;
    helpers.reserve((size_t)wanted);
    try {
        for (int64_t n = 0; n < wanted; ++n) helpers.emplace_back(guarded);
    } catch (const std::system_error&) {
        // The system grants no more threads (a process limit): the ones there are share out the same tasks, with the
        // same result.
    }
    guarded();
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace fastmalade::cpu
