// Blocks that meet at a counter, in the emulation: `blocks_that_meet BLOCKS START ABSENT` runs rounds of a sum over all
// blocks, from a counter of START; block ABSENT (-1 for none) does not come to the last round. Prints an error of the
// emulation and returns 1; returns 2 where a block has read what it should not have.
#include <cstdio>
#include <cstdlib>

#include "cuda/emulation/scheduler.h"
#include "cuda/exchange.cuh"

using namespace fastmalade::cuda;

int main(int, char** arguments) {
    const int blocks = std::atoi(arguments[1]), absent = std::atoi(arguments[3]), threads = 3, rounds = 5;
    uint32_t counter = (uint32_t)std::strtoul(arguments[2], nullptr, 10);
    const uint32_t start = counter;
    std::vector<int> values((size_t)(blocks * threads), -1);
    bool right = true;
    try {
        emulation::run({blocks, threads, blocks, 0}, [&] {
            const DevicePeers peers{&counter, (int)blockIdx.x, blocks};
            for (int round = 0; round < rounds; ++round) {
                if (round == rounds - 1 && (int)blockIdx.x == absent) return;
                values[(size_t)(blockIdx.x * threads + threadIdx.x)] = round;
                peers.sync<1>();
                for (const int value : values) right = right && value == round;
                peers.sync<2>();
            }
        });
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 1;
    }
    // Two barriers a round turn the highest bit twice, and nothing else is left.
    return right && counter == start ? 0 : 2;
}
