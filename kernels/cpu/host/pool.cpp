// See pool.h.
#include "cpu/host/pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/host/affinity.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace fastmalade::cpu {
namespace {

// Waking a sleeping thread takes tens of microseconds, a good part of the time of a chain of one image. So a thread
// that waits spins for about that long before it goes to sleep.
constexpr std::chrono::microseconds kSpin(40);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins until `ready` holds or kSpin has passed.
template <class Ready>
void spin_until(Ready ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int n = 0; n < 32; ++n) {
            if (ready()) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
}

// One call, on its caller's stack.
struct Call {
    Call(int64_t count, Work work, void* context) : tasks(count), work(work), context(context) {}

    TaskCounter tasks;
    const Work work;
    void* const context;
    const CpuMask mask = CpuMask::current();
    // The rest is changed under the pool's lock alone.
    int most_workers = 0;
    std::atomic<int> workers{0};  // at work on it; read without the lock while spinning
};

class Pool {
public:
    void run(Call& call, int64_t threads) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            calls_.push_back(&call);
            ++total_calls_;
            call.most_workers = (int)std::min<int64_t>({threads, call.tasks.count, call.mask.count()}) - 1;
            send_surplus_away(call);
            note_most_at_work();
            if (call.most_workers > 0) {
                start_workers(call.mask.count() - 1);
                ++epoch_;
                wake(call.most_workers);
            }
        }
        TaskSource tasks(call.tasks, false);
        call.work(call.context, tasks);
        if (call.workers.load(std::memory_order_relaxed) > 0) {
            spin_until([&] { return call.workers.load(std::memory_order_relaxed) == 0; });
        }
        std::unique_lock<std::mutex> lock(mutex_);
        // Workers leave under this lock: once the count is zero here, none of them uses `call` any more.
        call.most_workers = 0;
        left_.wait(lock, [&] { return call.workers.load(std::memory_order_relaxed) == 0; });
        calls_.erase(std::find(calls_.begin(), calls_.end(), &call));
        if (!calls_.empty()) {  // a CPU is free: another call may have had too few
            ++epoch_;
            wake(sleeping_);
        }
    }

    PoolInfo info() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return PoolInfo{0, workers_, total_calls_, joins_, most_at_work_};
    }

private:
    // Threads at work on CPUs that `call` may use, without those that were asked to leave.
    int at_work_beside(const Call& call) const {
        int threads = 0;
        for (const Call* other : calls_) {
            if (!other->mask.overlaps(call.mask)) continue;
            const int leaving = other->tasks.leave.load(std::memory_order_relaxed);
            threads += 1 + std::max(0, other->workers.load(std::memory_order_relaxed) - leaving);
        }
        return threads;
    }

    void send_surplus_away(const Call& arrived) {
        int surplus = at_work_beside(arrived) - arrived.mask.count();
        for (Call* other : calls_) {
            if (surplus <= 0) return;
            if (!other->mask.overlaps(arrived.mask)) continue;
            const int asked = other->tasks.leave.load(std::memory_order_relaxed);
            const int staying = other->workers.load(std::memory_order_relaxed) - asked;
            const int leaving = std::clamp(surplus, 0, std::max(staying, 0));
            other->tasks.leave.fetch_add(leaving, std::memory_order_relaxed);
            surplus -= leaving;
        }
    }

    void note_most_at_work() {
        int64_t threads = 0;
        for (const Call* call : calls_) threads += 1 + call->workers.load(std::memory_order_relaxed);
        most_at_work_ = std::max(most_at_work_, threads);
    }

    // As many as all calls together could use, and never more than there are CPUs beside one caller. `beside_caller` is
    // that number for this caller: the thread that made the pool may have seen fewer CPUs.
    void start_workers(int64_t beside_caller) {
        int64_t wanted = 0;
        for (const Call* call : calls_) wanted += call->most_workers;
        wanted = std::min({wanted, std::max(cpus_ - 1, beside_caller), granted_});
        if (workers_ >= wanted) return;
        // Signals belong to the application's threads: taken by a worker they would interrupt nobody's wait.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            while (workers_ < wanted) {
                std::thread([this] { serve(); }).detach();
                ++workers_;
            }
        } catch (const std::system_error&) {
            // The system grants no more threads (a process limit). The existing ones do the same tasks with the same
            // result. It is not asked again, or every call would pay for the failure.
            granted_ = workers_;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void wake(int64_t threads) {
        for (int64_t n = std::min<int64_t>(threads, sleeping_); n > 0; --n) wake_.notify_one();
    }

    // The oldest call that has tasks left and may have one more thread.
    Call* joinable() const {
        for (Call* call : calls_) {
            if (call->workers.load(std::memory_order_relaxed) >= call->most_workers || call->tasks.exhausted())
                continue;
            if (at_work_beside(*call) < call->mask.count()) return call;
        }
        return nullptr;
    }

    // What a worker does until the process ends.
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Call* call = joinable();
            if (!call) {
                wait_for_news(lock);
                continue;
            }
            ++joins_;
            call->workers.fetch_add(1, std::memory_order_relaxed);
            note_most_at_work();
            lock.unlock();
            // Read every time: tools move the threads of a running process to other CPUs.
            const bool in_place = CpuMask::current() == call->mask || call->mask.apply();
            if (in_place) {
                TaskSource tasks(call->tasks, true);
                call->work(call->context, tasks);
            }
            lock.lock();
            if (!in_place) call->most_workers = 0;  // its caller works alone: no CPU of the mask takes another thread
            leave(*call);
        }
    }

    void leave(Call& call) {
        const int staying = call.workers.fetch_sub(1, std::memory_order_relaxed) - 1;
        // Where the tasks ran out before a worker followed the request, it must not send the next worker away.
        int asked = call.tasks.leave.load(std::memory_order_relaxed);
        while (asked > staying && !call.tasks.leave.compare_exchange_weak(asked, staying, std::memory_order_relaxed)) {
        }
        if (staying == 0) left_.notify_all();
    }

    void wait_for_news(std::unique_lock<std::mutex>& lock) {
        const uint64_t seen = epoch_.load(std::memory_order_relaxed);
        const auto news = [&] { return epoch_.load(std::memory_order_relaxed) != seen; };
        lock.unlock();
        spin_until(news);
        lock.lock();
        ++sleeping_;
        wake_.wait(lock, news);
        --sleeping_;
    }

    std::mutex mutex_;
    std::condition_variable wake_;  // workers: epoch_ has changed
    std::condition_variable left_;  // callers: a call has lost its last worker
    // Changes whenever there is a reason to look for a call; read without the lock while spinning.
    std::atomic<uint64_t> epoch_{0};
    std::vector<Call*> calls_;  // at work, oldest first
    int64_t workers_ = 0, sleeping_ = 0;
    int64_t cpus_ = std::thread::hardware_concurrency(), granted_ = std::numeric_limits<int64_t>::max();
    int64_t total_calls_ = 0, joins_ = 0, most_at_work_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};

// Not a static inside a function: its hidden lock might be held by another thread at the moment of a fork.
Pool& pool() {
    Pool* existing = the_pool.load(std::memory_order_acquire);
    if (existing) return *existing;
    Pool* fresh = new Pool;
    if (the_pool.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;  // another thread was faster
    return *existing;
}

[[maybe_unused]] const int forget_pool_in_children =
    pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr, std::memory_order_release); });

}  // namespace

void run_tasks(int64_t count, int threads, Work work, void* context) {
    if (count <= 0) return;
    Call call(count, work, context);
    pool().run(call, std::max(threads, 1));
}

int usable_threads(int threads) { return threads > 1 ? std::min(threads, CpuMask::current().count()) : 1; }

PoolInfo pool_info() {
    PoolInfo info = pool().info();
    info.cpus = CpuMask::current().count();
    return info;
}

}  // namespace fastmalade::cpu
