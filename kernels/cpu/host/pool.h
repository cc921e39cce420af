// The threads of a process: started when first needed, shared by all calls, never more at work than there are CPUs.
//
// A call is its caller plus the workers that join it. The caller takes tasks like any worker, so a call ends even if no
// worker ever joins. A worker joins a call only while the threads at work on the call's CPUs, callers and workers of
// all calls together, are fewer than those CPUs; when another caller arrives, surplus workers leave between two tasks.
//
// The CPUs of a call are those its caller may use (sched_getaffinity, read at every call). A worker takes that mask
// over before it works: whatever mask the pool was started under, no work runs where its caller could not.
//
// Fork: the child of a fork has none of these threads and may have been made while another thread held the lock. It
// starts with a pool of its own and leaves its copy of the old one untouched.
// Exit: the workers are detached and the pool is never destroyed, so that exit waits for nothing and destroys nothing
// that a thread might still use.
#pragma once

#include <stdint.h>

#include <atomic>

#include "cpu/host/interruption.h"

namespace fastmalade::cpu {

// Tasks 0 .. count-1 of one call, each handed out once.
struct TaskCounter {
    explicit TaskCounter(int64_t count) : count(count) {}
    bool exhausted() const {
        return stopped.load(std::memory_order_relaxed) || next.load(std::memory_order_relaxed) >= count;
    }

    const int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> stopped{false};
    std::atomic<int> leave{0};  // number of workers asked to leave the call
};

// One thread's view of them.
class TaskSource {
public:
    TaskSource(TaskCounter& tasks, bool is_worker)
        : tasks_(tasks), is_worker_(is_worker), interruption_(is_worker ? nullptr : Interruption::of_thread()) {}

    // The next task, or -1 when this thread should stop: none is left, a thread has failed, the call is to end early,
    // or its CPU is wanted.
    int64_t next() {
        if (tasks_.exhausted() || (is_worker_ && asked_to_leave())) return -1;
        if (interruption_ && interruption_->wanted()) {
            stop();
            return -1;
        }
        const int64_t task = tasks_.next.fetch_add(1, std::memory_order_relaxed);
        return task < tasks_.count ? task : -1;
    }
    void stop() { tasks_.stopped.store(true, std::memory_order_relaxed); }

private:
    bool asked_to_leave() {
        int wanted = tasks_.leave.load(std::memory_order_relaxed);
        while (wanted > 0) {
            if (tasks_.leave.compare_exchange_weak(wanted, wanted - 1, std::memory_order_relaxed)) return true;
        }
        return false;
    }

    TaskCounter& tasks_;
    const bool is_worker_;
    Interruption* const interruption_;
};

// What the threads of a call do; must not throw. context: as given to run_tasks
using Work = void (*)(void* context, TaskSource& tasks);

// Calls work(context, tasks) on the calling thread and on up to threads - 1 workers, and returns when all have
// returned. Never on more threads than tasks, nor on more than the CPUs that the calling thread may use.
void run_tasks(int64_t count, int threads, Work work, void* context);

// How many of `threads` a call of this thread can get at most.
int usable_threads(int threads);

struct PoolInfo {
    int64_t cpus;          // that the calling thread may use
    int64_t workers;       // threads started in this process
    int64_t calls;         // of run_tasks
    int64_t joins;         // times a worker has joined a call
    int64_t most_at_work;  // most callers and workers at work at once, a worker counting until it has left its call
};
PoolInfo pool_info();

}  // namespace fastmalade::cpu
