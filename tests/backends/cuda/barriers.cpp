// Barriers of the emulation: `barriers SCOPE ODD` runs rounds of a sum over the threads of two blocks of a cluster,
// with barriers of the scope "block" or "cluster". Thread ODD of the second block (-1 for none) does not come to the
// last round; where the scope is "mixed" it waits for its block there, and all others for the cluster. Prints an error
// of the emulation and returns 1; returns 2 where a thread has read what it should not have.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/emulation/scheduler.h"

using namespace fastmalade::cuda;

int main(int, char** arguments) {
    const std::string scope = arguments[1];
    const int odd = std::atoi(arguments[2]), blocks = 2, threads = 3, rounds = 5;
    std::vector<int> values((size_t)(blocks * threads), -1);
    bool right = true;
    try {
        emulation::run({blocks, threads, blocks, 0}, [&] {
            const bool is_odd = odd >= 0 && blockIdx.x == 1 && threadIdx.x == odd;
            const int block = blockIdx.x * threads;
            const int first = scope == "block" ? block : 0,
                      last = scope == "block" ? block + threads : blocks * threads;
            for (int round = 0; round < rounds; ++round) {
                const bool differs = is_odd && round == rounds - 1;
                if (differs && scope != "mixed") return;
                values[(size_t)(block + threadIdx.x)] = round;
                const auto barrier = [&] {
                    if (scope == "block" || differs) {
                        __syncthreads();
                    } else {
                        cluster_barrier();
                    }
                };
                barrier();
                for (int n = first; n < last; ++n) right = right && values[(size_t)n] == round;
                barrier();
            }
        });
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    return right ? 0 : 2;
}
