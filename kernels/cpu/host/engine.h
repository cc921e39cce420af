// Turns one call into calls of kernels: chooses the form for every image, cuts the batch into tasks and runs them on
// threads. Compiled without special flags: the instruction set is that of the table it is given.
#pragma once

#include <stdint.h>

#include <array>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/host/memory.h"

namespace fastmalade::cpu {

class PackedModel;  // cpu/host/model_cache.h

// All forms give the same bits and differ in time alone. `automatic` chooses by the batch and the threads.
enum class Form { automatic, throughput, quad, latency };

// How a batch is cut: groups of the throughput form first, then quads, then single images.
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
// .trajectory are not used. weight_gradient: null, or where the gradient with respect to the weights goes, all ten
// arrays one after the other. Each image's part has the same bits in every batch; they are added in double precision in
// the order of the batch, whatever the threads.
void chain_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, const GradientArguments& gradient, float* weight_gradient,
                    Form form, int threads);

// Groups of images for each thread whose parts of the weights' gradient are kept until they are added.
constexpr int kWeightTasks = 4;

// Activations of all steps of one call, for a gradient that does not run the chain again.
class KeptChain {
public:
    KeptChain(const Kernels& kernels, const AutoencoderShape& shape, int64_t batch, int64_t n_steps, Form form,
              int threads);

    const Kernels& kernels;
    const AutoencoderShape shape;
    const int64_t batch, n_steps;
    const BatchPartition partition;
    std::shared_ptr<PackedModel> model;  // the chain's weights, set by recorded_chain

    float* records(int64_t task) const;  // of one task of the partition
    int64_t bytes() const;

private:
    int64_t records_floats(int64_t tasks) const;  // of the first so many tasks

    const std::array<int64_t, form_count> task_floats_;  // records of one task of each form
    const RecycledMemory memory_;
};

// Runs the chain and keeps all activations in `kept`, which was made for the same kernels, shape and batch.
void recorded_chain(KeptChain& kept, const AutoencoderWeights& weights, const ChainArguments& arguments, int threads);

// The gradient for a call of recorded_chain, with the weights of that call. Reads only the step settings of the
// arguments. cotangent, gradient: (B, C, H, W)
void chain_reverse(const KeptChain& kept, const ChainArguments& arguments, const float* cotangent, float* gradient,
                   int threads);

// A product with the transposed Jacobian of r.
void autoencoder_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                          const JacobianArguments& arguments, Form form, int threads);

// Bytes of working memory of one thread during a gradient, in whichever form takes more.
GradientMemory gradient_bytes(const Kernels& kernels, const AutoencoderShape& shape, bool weights);

// Bytes of one image's part of the weights' gradient, which the engine keeps for kWeightTasks groups of each thread.
int64_t weight_sum_bytes(const Kernels& kernels, const AutoencoderShape& shape);

// z: (batch, elements), the noise of one step. sample_ids: (batch,)
void standard_normal(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                     int64_t elements, float* z, int threads);

// words: (batch, 4 counters) non-negative. sample_ids: (batch,)
void philox_words(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                  int64_t counters, int64_t* words, int threads);

// One step for any r. Threads take images or pieces of images; the bits do not depend on how they are cut.
void langevin_update(const Kernels& kernels, const UpdateArguments& arguments, int threads);

// Index of the first value that is not within [low, high], NaN included, or -1. values: (n,)
int64_t first_outside(const float* values, int64_t n, float low, float high);

// Multiply-add rate of one core that works in registers alone, in floating-point operations per second: the highest of
// the millisecond-long runs that fit into `seconds`, because interruptions can only lower it.
double multiply_add_rate(const Kernels& kernels, double seconds);

// Seconds per image and step in each stage (kStageNames): the fastest of `repeats` runs on the calling thread.
std::array<double, kStages> stage_seconds(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights, Form form, int64_t repeats);

// Bytes of working memory that one thread takes for this shape, whatever the batch and the number of steps.
int64_t scratch_bytes(const Kernels& kernels, const AutoencoderShape& shape);

}  // namespace fastmalade::cpu
