// From one call to many kernel calls: chooses the form for every image, cuts the batch into tasks and runs them on
// threads. Compiled without special flags; the instruction set is the table it is given.
#pragma once

#include <stdint.h>

#include <array>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/host/memory.h"

namespace fastmalade::cpu {

class PackedModel;  // cpu/host/model_cache.h

// All forms give the same bits, so the choice is one of time alone. `automatic` weighs the batch against the threads.
enum class Form { automatic, throughput, quad, latency };

// The batch as groups, then quads, then single images.
struct BatchPartition {
    int64_t tasks[form_count], images[form_count];  // of each form
    int64_t all_tasks() const { return tasks[throughput] + tasks[quad] + tasks[latency]; }
};

// Runs one chain over the whole batch on at most `threads` threads, the calling one included; cpu/host/pool.h says
// which.
void langevin_chain(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, Form form, int threads);

// out = r(x). x, out: (batch, C, H, W)
void autoencoder_forward(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                         int64_t batch, const float* x, float* out, Form form, int threads);

// The chain's vector-Jacobian product with respect to x, the noise of the forward pass drawn again. arguments.out and
// .trajectory are not used.
void chain_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, const GradientArguments& gradient, Form form, int threads);

// Activations of all steps of one call, for a gradient that does not run the chain again.
class KeptChain {
public:
    KeptChain(const Kernels& kernels, const AutoencoderShape& shape, int64_t batch, int64_t n_steps, Form form,
              int threads);

    const Kernels& kernels;
    const AutoencoderShape shape;
    const int64_t batch, n_steps;
    const BatchPartition partition;
    std::shared_ptr<PackedModel> model;  // that the chain ran with, from then on

    float* records(int64_t task) const;  // of one task of the partition
    int64_t bytes() const;

private:
    int64_t records_floats(int64_t tasks) const;  // of the first so many tasks

    const std::array<int64_t, form_count> task_floats_;  // records of one task of each form
    const HandedOn memory_;
};

// The chain, all of its activations kept in `kept`, which was made for its kernels, shape and batch.
void recorded_chain(KeptChain& kept, const AutoencoderWeights& weights, const ChainArguments& arguments, int threads);

// The gradient for a call of recorded_chain, with the weights of that call. Of the arguments only the schedule is read.
// cotangent, gradient: (B, C, H, W)
void chain_reverse(const KeptChain& kept, const ChainArguments& arguments, const float* cotangent, float* gradient,
                   int threads);

// One product with the transposed Jacobian of r.
void autoencoder_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                          const JacobianArguments& arguments, Form form, int threads);

// Bytes of working memory of one thread during a gradient, in whichever form takes more.
GradientMemory gradient_bytes(const Kernels& kernels, const AutoencoderShape& shape);

// z: (batch, elements), the noise of one step. sample_ids: (batch,)
void standard_normal(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                     int64_t elements, float* z, int threads);

// words: (batch, 4 counters) non-negative. sample_ids: (batch,)
void philox_words(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                  int64_t counters, int64_t* words, int threads);

// One step for any r. Images and pieces of images are shared out over the threads; the bits do not depend on how.
void langevin_update(const Kernels& kernels, const UpdateArguments& arguments, int threads);

// Index of the first value that is not within [low, high], NaN included, or -1. values: (n,)
int64_t first_outside(const float* values, int64_t n, float low, float high);

// Multiply-adds of one core out of registers, in floating-point operations per second: the highest rate of the
// millisecond-long pieces that `seconds` hold, since interruptions by others only lower it.
double multiply_add_rate(const Kernels& kernels, double seconds);

// Seconds of one image and one step in each stage (kStageNames), the shortest of `repeats` runs, on the calling thread.
std::array<double, kStages> stage_seconds(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights, Form form, int64_t repeats);

// Bytes of working memory that one thread takes for this shape, whatever the batch and the number of steps.
int64_t scratch_bytes(const Kernels& kernels, const AutoencoderShape& shape);

}  // namespace fastmalade::cpu
