// Runs the threads of a launch, cluster after cluster (emulation.h).
#pragma once

#include <functional>
#include <memory>

#include "cuda/emulation/emulation.h"
#include "cuda/emulation/mailbox.h"

#if defined(FASTMALADE_EMULATION_THREADS)
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

namespace fastmalade::cuda::emulation {

// One for each warp. No warp reaches over two blocks.
inline std::vector<Mailbox> make_mailboxes(const Launch& launch, std::vector<Self>& threads) {
    const size_t warps = (size_t)(launch.threads + kLanes - 1) / kLanes;
    std::vector<Mailbox> mailboxes((size_t)launch.cluster * warps);
    for (Self& thread : threads) {
        thread.warp = &mailboxes[(size_t)thread.rank * warps + (size_t)(thread.thread.x / kLanes)];
    }
    return mailboxes;
}

inline std::vector<Self> make_threads(const Launch& launch, int first_block, std::vector<float>* memory) {
    std::vector<Self> threads;
    for (int rank = 0; rank < launch.cluster; ++rank) {
        for (int n = 0; n < launch.threads; ++n) {
            threads.push_back(
                Self{{n}, {first_block + rank}, {launch.threads}, {launch.blocks}, rank, launch.cluster, memory});
        }
    }
    return threads;
}

#if defined(FASTMALADE_EMULATION_THREADS)

// The standard library's. With POSIX's barriers ThreadSanitizer passed over a missing one in about every third run.
struct Barrier {
    std::barrier<> barrier;
    explicit Barrier(size_t threads) : barrier((std::ptrdiff_t)threads) {}
    void wait() { barrier.arrive_and_wait(); }
};

struct Barriers {
    std::vector<std::unique_ptr<Barrier>> block;
    std::unique_ptr<Barrier> cluster;
};

inline Barriers* barriers = nullptr;

inline void wait(Scope scope) {
    if (scope == Scope::warp) return meet(*self->warp);
    (scope == Scope::cluster ? *barriers->cluster : *barriers->block[(size_t)self->rank]).wait();
}

inline void run_cluster(const Launch& launch, std::vector<Self>& threads, const std::function<void()>& body) {
    Barriers own;
    for (int rank = 0; rank < launch.cluster; ++rank) {
        own.block.push_back(std::make_unique<Barrier>((size_t)launch.threads));
    }
    own.cluster = std::make_unique<Barrier>(threads.size());
    barriers = &own;
    std::vector<std::thread> running;
    for (Self& thread : threads) {
        running.emplace_back([&thread, &body] {
            self = &thread;
            // Start together: a thread that is done before the next one starts has nothing to race with.
            barriers->cluster->wait();
            body();
        });
    }
    for (std::thread& thread : running) thread.join();
}

#else

struct Fiber {
    ucontext_t context;
    Self* self = nullptr;
    bool waits = false, done = false;
    Scope scope = Scope::block;
};

inline ucontext_t scheduler_context;
inline Fiber* running = nullptr;
inline const std::function<void()>* running_body = nullptr;

inline void wait(Scope scope) {
    running->waits = true;
    running->scope = scope;
    swapcontext(&running->context, &scheduler_context);
}

inline void fiber_main() {
    (*running_body)();
    running->done = true;
    swapcontext(&running->context, &scheduler_context);
}

inline void resume(Fiber& fiber) {
    running = &fiber;
    self = fiber.self;
    swapcontext(&scheduler_context, &fiber.context);
}

// Lets fibers first .. first+count-1 go on if all of them wait at one barrier. Where some wait and others have ended, a
// GPU would hang, or worse.
inline bool release(std::vector<Fiber>& fibers, size_t first, size_t count, Scope scope) {
    size_t waiting = 0, done = 0;
    for (size_t n = first; n < first + count; ++n) {
        waiting += fibers[n].waits && fibers[n].scope == scope;
        done += fibers[n].done;
    }
    if (waiting > 0 && done > 0) throw std::runtime_error("emulation: a thread ended while others wait at a barrier");
    if (waiting < count) return false;
    for (size_t n = first; n < first + count; ++n) fibers[n].waits = false;
    return true;
}

inline void run_cluster(const Launch& launch, std::vector<Self>& threads, const std::function<void()>& body) {
    constexpr size_t kStack = 128 * 1024;
    // Kept between launches: faulting their pages in again would take longer than many a launch.
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() < threads.size()) stacks.emplace_back(new char[kStack]);
    std::vector<Fiber> fibers(threads.size());
    running_body = &body;
    for (size_t n = 0; n < fibers.size(); ++n) {
        fibers[n].self = &threads[n];
        getcontext(&fibers[n].context);
        fibers[n].context.uc_stack.ss_sp = stacks[n].get();
        fibers[n].context.uc_stack.ss_size = kStack;
        fibers[n].context.uc_link = nullptr;
        makecontext(&fibers[n].context, fiber_main, 0);
    }
    const size_t per_block = (size_t)launch.threads;
    for (bool finished = false; !finished;) {
        finished = true;
        for (Fiber& fiber : fibers) {
            if (!fiber.done && !fiber.waits) resume(fiber);
            finished = finished && fiber.done;
        }
        bool released = release(fibers, 0, fibers.size(), Scope::cluster);
        for (size_t first = 0; first < fibers.size(); first += per_block) {
            released = release(fibers, first, per_block, Scope::block) || released;
            for (size_t lane = 0; lane < per_block; lane += kLanes) {
                const size_t lanes = per_block - lane < kLanes ? per_block - lane : kLanes;
                released = release(fibers, first + lane, lanes, Scope::warp) || released;
            }
        }
        if (!finished && !released) {
            throw std::runtime_error("emulation: a barrier that not all threads reach");
        }
    }
}

#endif

inline void run(const Launch& launch, const std::function<void()>& body) {
    if (launch.threads < 1 || launch.cluster < 1 || launch.blocks < 1 || launch.blocks % launch.cluster != 0) {
        throw std::runtime_error("emulation: expected a grid of whole clusters of at least one thread");
    }
    for (int first = 0; first < launch.blocks; first += launch.cluster) {
        const size_t floats = (size_t)launch.shared_bytes / sizeof(float);
        std::vector<std::vector<float>> memory((size_t)launch.cluster,
                                               std::vector<float>(floats, std::numeric_limits<float>::quiet_NaN()));
        std::vector<Self> threads = make_threads(launch, first, memory.data());
        const std::vector<Mailbox> mailboxes = make_mailboxes(launch, threads);
        run_cluster(launch, threads, body);
    }
}

}  // namespace fastmalade::cuda::emulation
