// Ending a call early. Who makes calls may leave a question on its stack, which its thread then asks between two tasks;
// the threads that help it finish the task they are at.
#pragma once

#include <chrono>

namespace fastmalade::cpu {

class Interruption {
public:
    using Wanted = bool (*)(void* context);

    // Holds for all calls of this thread until it is destroyed. wanted: must not throw
    Interruption(Wanted wanted, void* context) : wanted_(wanted), context_(context), before_(of_thread()) {
        of_thread() = this;
    }
    ~Interruption() { of_thread() = before_; }
    Interruption(const Interruption&) = delete;
    Interruption& operator=(const Interruption&) = delete;

    // The latest of this thread, or null.
    static Interruption*& of_thread() {
        static thread_local Interruption* latest = nullptr;
        return latest;
    }

    // Whether the call is to end; once it is, so are all that follow. Asking may take a lock, so it is not done at
    // every task.
    bool wanted() {
        if (ended_) return true;
        const auto now = Clock::now();
        if (now - asked_ < kBetweenQuestions) return false;
        ended_ = wanted_(context_);
        asked_ = Clock::now();
        return ended_;
    }
    bool ended() const { return ended_; }

private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kBetweenQuestions{50};

    const Wanted wanted_;
    void* const context_;
    Interruption* const before_;
    Clock::time_point asked_ = Clock::now();
    bool ended_ = false;
};

}  // namespace fastmalade::cpu
