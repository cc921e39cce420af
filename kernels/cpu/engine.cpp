// See engine.h.
#include "cpu/engine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/parallel.h"

namespace fastmalade::cpu {
namespace {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

struct FreeDeleter {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, FreeDeleter>;

Buffer allocate(int64_t floats) {
    const int64_t bytes = (floats * (int64_t)sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    float* memory = static_cast<float*>(std::aligned_alloc(kAlignment, std::max(bytes, kAlignment)));
    if (!memory) throw std::bad_alloc();
    return Buffer(memory);
}

// The batch as `groups` groups, then single images.
struct Plan {
    int64_t grouped;  // images that go in groups, from the first on
    int64_t groups, singles;
    int64_t tasks() const { return groups + singles; }
};

Plan plan_with(int64_t batch, int64_t lanes, int64_t groups) {
    const int64_t grouped = std::min(batch, groups * lanes);
    return Plan{grouped, groups, batch - grouped};
}

// Time of the plan in units of one single image, tasks handed out to whichever thread is free.
double estimated_time(const Plan& plan, double group_time, int threads) {
    const int64_t last_round = plan.groups % threads;
    double busiest = std::ceil((double)plan.groups / threads) * group_time;
    // Threads without a group in the last round take single images first.
    int64_t singles = plan.singles;
    if (last_round != 0) singles -= std::min(singles, (int64_t)(group_time * (threads - last_round)));
    return busiest + std::ceil((double)singles / threads);
}

Plan choose_plan(const Kernels& kernels, int64_t batch, Form form, int threads) {
    const int64_t lanes = kernels.lanes, most_groups = (batch + lanes - 1) / lanes;
    if (form == Form::throughput) return plan_with(batch, lanes, most_groups);
    if (form == Form::latency) return plan_with(batch, lanes, 0);
    Plan best = plan_with(batch, lanes, most_groups);
    // Only the last round of groups is worth cutting finer: earlier groups are full on every thread.
    const int64_t fewest_groups = std::max<int64_t>(0, most_groups - 1 - threads);
    for (int64_t groups = fewest_groups; groups < most_groups; ++groups) {
        const Plan plan = plan_with(batch, lanes, groups);
        if (estimated_time(plan, kernels.images_per_group_time, threads) <
            estimated_time(best, kernels.images_per_group_time, threads)) {
            best = plan;
        }
    }
    return best;
}

Buffer pack(const FormKernels& form, const AutoencoderShape& shape, const AutoencoderWeights& weights, bool wanted) {
    if (!wanted) return Buffer();
    Buffer packed = allocate(form.packed_floats(shape));
    form.pack(shape, weights, packed.get());
    return packed;
}

// Calls run(form, packed, first image, images, scratch) for every task of the plan.
template <class Run>
void run_plan(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights, int64_t batch,
              Form form, int threads, Run run) {
    const int workers = std::max(threads, 1);
    const Plan plan = choose_plan(kernels, batch, form, workers);
    const Buffer throughput = pack(kernels.throughput, shape, weights, plan.groups > 0);
    const Buffer latency = pack(kernels.latency, shape, weights, plan.singles > 0);
    const int64_t scratch_floats = std::max(plan.groups > 0 ? kernels.throughput.scratch_floats(shape) : 0,
                                            plan.singles > 0 ? kernels.latency.scratch_floats(shape) : 0);
    parallel_for(plan.tasks(), workers, [&](TaskSource& tasks) {
        Buffer scratch;  // allocated by the thread that uses it, and only if it gets a task
        for (int64_t task = tasks.next(); task >= 0; task = tasks.next()) {
            if (!scratch) scratch = allocate(scratch_floats);
            if (task < plan.groups) {
                const int64_t first = task * kernels.lanes;
                run(kernels.throughput, throughput.get(), first, std::min(kernels.lanes, plan.grouped - first),
                    scratch.get());
            } else {
                run(kernels.latency, latency.get(), plan.grouped + task - plan.groups, (int64_t)1, scratch.get());
            }
        }
    });
}

}  // namespace

void langevin_chain(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, Form form, int threads) {
    run_plan(kernels, shape, weights, arguments.batch, form, threads,
             [&](const FormKernels& chosen, const float* packed, int64_t first, int64_t count, float* scratch) {
                 chosen.langevin_chain(shape, packed, arguments, first, count, scratch);
             });
}

void autoencoder_forward(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                         int64_t batch, const float* x, float* out, Form form, int threads) {
    run_plan(kernels, shape, weights, batch, form, threads,
             [&](const FormKernels& chosen, const float* packed, int64_t first, int64_t count, float* scratch) {
                 chosen.autoencoder_forward(shape, packed, x, out, first, count, scratch);
             });
}

void standard_normal(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                     int64_t elements, float* z, int threads) {
    parallel_for(batch, threads, [&](TaskSource& tasks) {
        for (int64_t b = tasks.next(); b >= 0; b = tasks.next()) {
            kernels.standard_normal(seed, (uint64_t)sample_ids[b], step, elements, z + b * elements);
        }
    });
}

void philox_words(const Kernels& kernels, uint64_t seed, const int64_t* sample_ids, int64_t batch, uint32_t step,
                  int64_t counters, int64_t* words, int threads) {
    parallel_for(batch, threads, [&](TaskSource& tasks) {
        for (int64_t b = tasks.next(); b >= 0; b = tasks.next()) {
            kernels.philox_words(seed, (uint64_t)sample_ids[b], step, counters, words + 4 * b * counters);
        }
    });
}

int64_t scratch_bytes(const Kernels& kernels, const AutoencoderShape& shape) {
    return (int64_t)sizeof(float) *
           std::max(kernels.throughput.scratch_floats(shape), kernels.latency.scratch_floats(shape));
}

}  // namespace fastmalade::cpu
