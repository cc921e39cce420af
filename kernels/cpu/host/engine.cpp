// See engine.h.
#include "cpu/host/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/host/memory.h"
#include "cpu/host/model_cache.h"
#include "cpu/host/parallel.h"

namespace fastmalade::cpu {
namespace {

using Clock = std::chrono::steady_clock;
double elapsed(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

BatchPartition partition_with(const Kernels& kernels, int64_t batch, int64_t groups, int64_t quads) {
    BatchPartition partition{{groups, quads, 0}, {}};
    partition.images[throughput] = std::min(batch, groups * kernels.forms[throughput].images);
    const int64_t left = batch - partition.images[throughput];
    partition.images[quad] = std::min(left, quads * kernels.forms[quad].images);
    partition.tasks[latency] = partition.images[latency] = left - partition.images[quad];
    return partition;
}

// Estimated time of a partition whose tasks go, in their order, to whichever thread is free.
double estimated_time(const BatchPartition& partition, const double* call_time, int threads) {
    double busiest = 0.0, idle = 0.0;  // idle: of all other threads together, before the busiest is done
    for (int form = 0; form < form_count; ++form) {
        // Tasks that fit into the time in which other threads would be idle cost nothing.
        const int64_t fit = std::min(partition.tasks[form], (int64_t)(idle / call_time[form]));
        idle -= (double)fit * call_time[form];
        const int64_t left = partition.tasks[form] - fit, rounds = (left + threads - 1) / threads;
        busiest += (double)rounds * call_time[form];
        idle += (double)(rounds * threads - left) * call_time[form];
    }
    return busiest;
}

BatchPartition choose_partition(const Kernels& kernels, int64_t batch, Form form, int threads) {
    const auto calls = [](int64_t images, int64_t most) { return (images + most - 1) / most; };
    const int64_t lanes = kernels.forms[throughput].images, most_groups = calls(batch, lanes);
    const int64_t four = kernels.forms[quad].images;
    if (form == Form::throughput) return partition_with(kernels, batch, most_groups, 0);
    if (form == Form::quad) return partition_with(kernels, batch, 0, calls(batch, four));
    if (form == Form::latency) return partition_with(kernels, batch, 0, 0);
    BatchPartition best = partition_with(kernels, batch, most_groups, 0);
    double best_time = estimated_time(best, kernels.call_time, threads);
    // Only the last round of groups is worth cutting finer: earlier groups are full on every thread.
    for (int64_t groups = std::max<int64_t>(0, most_groups - 1 - threads); groups <= most_groups; ++groups) {
        const int64_t left = std::max<int64_t>(0, batch - groups * lanes), full = left / four;
        for (const int64_t quads : {(int64_t)0, full, calls(left, four)}) {
            const BatchPartition partition = partition_with(kernels, batch, groups, quads);
            const double time = estimated_time(partition, kernels.call_time, threads);
            if (time < best_time) {
                best = partition;
                best_time = time;
            }
        }
    }
    return best;
}

// One task: a few images, and what their kernel call needs.
struct Task {
    int64_t number, first, count;  // first image and number of images
    const FormKernels& form;
    const PackedModel::Arrays& model;
    float* scratch;
};

// Calls run(task) for `count` tasks of the partition from number `begin` on. scratch_floats(form) is what a task of
// that form takes.
template <class ScratchFloats, class Run>
void run_tasks_of(const Kernels& kernels, PackedModel& model, bool transposes, const BatchPartition& partition,
                  int64_t begin, int64_t task_count, int workers, ScratchFloats scratch_floats, Run run) {
    PackedModel::Arrays arrays[form_count] = {};
    int64_t floats = 0;
    for (const FormIndex form : {throughput, quad, latency}) {
        if (partition.tasks[form] == 0) continue;
        arrays[form] = model.form(form, transposes);
        floats = std::max<int64_t>(floats, scratch_floats(kernels.forms[form]));
    }
    parallel_for(task_count, workers, [&](TaskSource& tasks) {
        for (int64_t next = tasks.next(); next >= 0; next = tasks.next()) {
            const int64_t task = begin + next;
            // Taken by the thread that uses it, and anew for each task: a signal handler that ran meanwhile may have
            // made a call of its own.
            float* const scratch = thread_memory().take(floats);
            int form = 0;
            int64_t of_form = task, first = 0;
            for (; of_form >= partition.tasks[form]; ++form) {
                of_form -= partition.tasks[form];
                first += partition.images[form];
            }
            const FormKernels& chosen = kernels.forms[form];
            const int64_t before = of_form * chosen.images,
                          count = std::min(chosen.images, partition.images[form] - before);
            run(Task{task, first + before, count, chosen, arrays[form], scratch});
        }
        thread_memory().trim();
    });
}

// All tasks of a partition.
template <class ScratchFloats, class Run>
void run_partition(const Kernels& kernels, PackedModel& model, bool transposes, const BatchPartition& partition,
                   int workers, ScratchFloats scratch_floats, Run run) {
    run_tasks_of(kernels, model, transposes, partition, 0, partition.all_tasks(), workers, scratch_floats, run);
}

// The same for a batch. It is cut for the threads that the call can get: those it merely asks for may never join.
template <class ScratchFloats, class Run>
void run_batch(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
               bool transposes, int64_t batch, Form form, int threads, ScratchFloats scratch_floats, Run run) {
    if (batch <= 0) return;
    const int workers = usable_threads(threads);
    const std::shared_ptr<PackedModel> model = cached_model(kernels, shape, weights);
    run_partition(kernels, *model, transposes, choose_partition(kernels, batch, form, workers), workers, scratch_floats,
                  run);
}

// total += sums of every image, in the order of the images. sums: (images, floats)
void add_in_order(const float* sums, int64_t images, int64_t floats, double* total, int workers) {
    constexpr int64_t piece = 4096;
    parallel_for((floats + piece - 1) / piece, workers, [&](TaskSource& tasks) {
        for (int64_t task = tasks.next(); task >= 0; task = tasks.next()) {
            const int64_t end = std::min(floats, (task + 1) * piece);
            for (int64_t image = 0; image < images; ++image) {
                const float* own = sums + image * floats;
                for (int64_t n = task * piece; n < end; ++n) total[n] += (double)own[n];
            }
        }
    });
}

}  // namespace

void langevin_chain(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, Form form, int threads) {
    run_batch(
        kernels, shape, weights, false, arguments.batch, form, threads,
        [&](const FormKernels& chosen) { return chosen.scratch_floats(shape); },
        [&](const Task& t) { t.form.langevin_chain(shape, t.model.layers, arguments, t.first, t.count, t.scratch); });
}

void autoencoder_forward(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                         int64_t batch, const float* x, float* out, Form form, int threads) {
    run_batch(
        kernels, shape, weights, false, batch, form, threads,
        [&](const FormKernels& chosen) { return chosen.scratch_floats(shape); },
        [&](const Task& t) { t.form.autoencoder_forward(shape, t.model.layers, x, out, t.first, t.count, t.scratch); });
}

void chain_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    const ChainArguments& arguments, const GradientArguments& gradient, float* weight_gradient,
                    Form form, int threads) {
    const bool of_weights = weight_gradient != nullptr;
    const int workers = usable_threads(threads);
    const BatchPartition partition = choose_partition(kernels, std::max<int64_t>(arguments.batch, 0), form, workers);
    const int64_t tasks = partition.all_tasks();
    const int64_t at_once = of_weights ? std::min(tasks, (int64_t)kWeightTasks * workers) : tasks;
    const int64_t floats = of_weights ? kernels.weight_sum_floats(shape) : 0;
    const std::shared_ptr<PackedModel> model = tasks > 0 ? cached_model(kernels, shape, weights) : nullptr;
    const RecycledMemory sums(at_once * kernels.lanes * floats);
    std::vector<double> total((size_t)floats, 0.0);
    int64_t first = 0;  // image of the tasks that run at once
    for (int64_t begin = 0; begin < tasks; begin += at_once) {
        std::atomic<int64_t> images{0};
        run_tasks_of(
            kernels, *model, true, partition, begin, std::min(at_once, tasks - begin), workers,
            [&](const FormKernels& chosen) {
                const GradientMemory memory = chosen.gradient_memory(shape, of_weights);
                return memory.fixed + gradient.checkpoints * memory.state + gradient.records * memory.record;
            },
            [&](const Task& t) {
                float* const own = of_weights ? sums.get() + (t.first - first) * floats : nullptr;
                t.form.chain_gradient(shape, t.model.layers, t.model.transposes, arguments, gradient, t.first, t.count,
                                      t.scratch, own);
                images += t.count;
            });
        if (of_weights) add_in_order(sums.get(), images, floats, total.data(), workers);
        first += images;
    }
    if (of_weights) kernels.weight_gradient(shape, weights, total.data(), weight_gradient);
}

KeptChain::KeptChain(const Kernels& the_kernels, const AutoencoderShape& the_shape, int64_t images, int64_t steps,
                     Form form, int threads)
    : kernels(the_kernels),
      shape(the_shape),
      batch(images),
      n_steps(steps),
      partition(choose_partition(kernels, batch, form, usable_threads(threads))),
      task_floats_([&] {
          std::array<int64_t, form_count> floats;
          for (int form = 0; form < form_count; ++form) {
              floats[(size_t)form] = n_steps * kernels.forms[form].gradient_memory(shape, false).record;
          }
          return floats;
      }()),
      memory_(records_floats(partition.all_tasks())) {}

int64_t KeptChain::records_floats(int64_t tasks) const {
    int64_t floats = 0;
    for (int form = 0; form < form_count; ++form) {
        const int64_t of_form = std::min(tasks, partition.tasks[form]);
        floats += of_form * task_floats_[(size_t)form];
        tasks -= of_form;
    }
    return floats;
}

float* KeptChain::records(int64_t task) const { return memory_.get() + records_floats(task); }

int64_t KeptChain::bytes() const { return buffer_bytes(records_floats(partition.all_tasks())); }

void recorded_chain(KeptChain& kept, const AutoencoderWeights& weights, const ChainArguments& arguments, int threads) {
    if (kept.batch <= 0) return;
    kept.model = cached_model(kept.kernels, kept.shape, weights);
    run_partition(
        kept.kernels, *kept.model, false, kept.partition, usable_threads(threads),
        [&](const FormKernels& chosen) { return chosen.gradient_memory(kept.shape, false).fixed; },
        [&](const Task& t) {
            t.form.recorded_chain(kept.shape, t.model.layers, arguments, t.first, t.count, t.scratch,
                                  kept.records(t.number));
        });
}

void chain_reverse(const KeptChain& kept, const ChainArguments& arguments, const float* cotangent, float* gradient,
                   int threads) {
    if (!kept.model) return;
    run_partition(
        kept.kernels, *kept.model, true, kept.partition, usable_threads(threads),
        [&](const FormKernels& chosen) { return chosen.gradient_memory(kept.shape, false).fixed; },
        [&](const Task& t) {
            t.form.chain_reverse(kept.shape, t.model.transposes, arguments, cotangent, gradient, t.first, t.count,
                                 t.scratch, kept.records(t.number));
        });
}

void autoencoder_gradient(const Kernels& kernels, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                          const JacobianArguments& arguments, Form form, int threads) {
    run_batch(
        kernels, shape, weights, true, arguments.batch, form, threads,
        [&](const FormKernels& chosen) {
            const GradientMemory memory = chosen.gradient_memory(shape, false);
            return memory.fixed + memory.record;
        },
        [&](const Task& t) {
            t.form.autoencoder_gradient(shape, t.model.layers, t.model.transposes, arguments, t.first, t.count,
                                        t.scratch);
        });
}

GradientMemory gradient_bytes(const Kernels& kernels, const AutoencoderShape& shape, bool weights) {
    GradientMemory most{0, 0, 0};
    for (const FormKernels& form : kernels.forms) {
        const GradientMemory floats = form.gradient_memory(shape, weights);
        const int64_t size = (int64_t)sizeof(float);
        most.fixed = std::max(most.fixed, size * floats.fixed);
        most.state = std::max(most.state, size * floats.state);
        most.record = std::max(most.record, size * floats.record);
    }
    return most;
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

void langevin_update(const Kernels& kernels, const UpdateArguments& arguments, int threads) {
    if (arguments.batch <= 0 || arguments.elements <= 0) return;
    // A task is some ten microseconds of work: large images are cut into pieces, small ones are bundled.
    constexpr int64_t piece = 8192;  // a multiple of 64, so that every piece starts a vector of counters
    const int64_t pieces = (arguments.elements + piece - 1) / piece;
    const int64_t images = std::max<int64_t>(1, piece / arguments.elements);
    const int64_t bundles = (arguments.batch + images - 1) / images;
    parallel_for(bundles * pieces, threads, [&](TaskSource& tasks) {
        for (int64_t task = tasks.next(); task >= 0; task = tasks.next()) {
            const int64_t begin = task / pieces * images, first = task % pieces * piece;
            const int64_t end = std::min(arguments.batch, begin + images);
            for (int64_t image = begin; image < end; ++image) {
                kernels.langevin_update(arguments, image, first, std::min(piece, arguments.elements - first));
            }
        }
    });
}

int64_t first_outside(const float* values, int64_t n, float low, float high) {
    constexpr int64_t block = 1024;
    for (int64_t start = 0; start < n; start += block) {
        const int64_t end = std::min(n, start + block);
        int bad = 0;  // no early exit: that leaves a loop the compiler turns into vectors
        for (int64_t i = start; i < end; ++i) bad |= !((values[i] >= low) & (values[i] <= high));
        if (!bad) continue;
        for (int64_t i = start; i < end; ++i) {
            if (!(values[i] >= low && values[i] <= high)) return i;
        }
    }
    return -1;
}

std::array<double, kStages> stage_seconds(const Kernels& kernels, const AutoencoderShape& shape,
                                          const AutoencoderWeights& weights, Form form, int64_t repeats) {
    const FormIndex index = form == Form::latency ? latency : form == Form::quad ? quad : throughput;
    const FormKernels& chosen = kernels.forms[index];
    const std::shared_ptr<PackedModel> model = cached_model(kernels, shape, weights);
    const float* packed = model->form(index, false).layers;
    const Buffer scratch = allocate(chosen.scratch_floats(shape));
    // Ordinary numbers: zeros or what the memory held before could be faster or slower to compute with.
    std::fill_n(scratch.get(), chosen.scratch_floats(shape), 0.25f);
    std::array<double, kStages> best;
    best.fill(std::numeric_limits<double>::infinity());
    for (int64_t n = 0; n < repeats; ++n) {
        for (int stage = 0; stage < kStages; ++stage) {
            const Clock::time_point begin = Clock::now();
            chosen.run_stage(shape, packed, stage, scratch.get());
            best[stage] = std::min(best[stage], elapsed(begin) / (double)chosen.images);
        }
    }
    return best;
}

double multiply_add_rate(const Kernels& kernels, double seconds) {
    volatile float result;
    float sink = 0.0f;
    double best = 0.0;
    int64_t rounds = 1000;
    const Clock::time_point start = Clock::now();
    do {
        const Clock::time_point begin = Clock::now();
        const int64_t operations = kernels.multiply_adds(rounds, &sink);
        const double took = elapsed(begin);
        if (took < 1e-3) {
            rounds *= 2;  // too short to be timed well, and not counted
        } else {
            best = std::max(best, (double)operations / took);
        }
    } while (best == 0.0 || elapsed(start) < seconds);
    result = sink;
    (void)result;
    return best;
}

int64_t weight_sum_bytes(const Kernels& kernels, const AutoencoderShape& shape) {
    return kernels.weight_sum_floats(shape) * (int64_t)sizeof(float);
}

int64_t scratch_bytes(const Kernels& kernels, const AutoencoderShape& shape) {
    int64_t floats = 0;
    for (const FormKernels& form : kernels.forms) floats = std::max(floats, form.scratch_floats(shape));
    return (int64_t)sizeof(float) * floats;
}

}  // namespace fastmalade::cpu
