// fastmalade._cpu: checks arguments and calls kernels/cpu. Arrays come as addresses and sizes, so that the module needs
// neither torch nor numpy; the caller in fastmalade/backends/cpu/calls.py owns them and has checked dtype and
// contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu_arguments.h"
#include "cpu_model.h"
#include "network.h"
#include "recorded_call.h"

#include "cpu/host/engine.h"
#include "cpu/host/model_cache.h"
#include "cpu/host/pool.h"

namespace {

// out: as ChainArguments::out; sample_ids, noise: as NoiseSource. With `inspect` nothing runs unless every value of x
// lies in [0, 1], and the result is looked through for what is not finite: "outside" and "diverged" say what was found.
const char* langevin_chain(const Model& model, const std::string& isa, const std::string& form, const Steps& steps,
                           uint64_t seed, uintptr_t sample_ids, uintptr_t noise, uintptr_t out, bool trajectory,
                           bool inspect, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    check_least("threads", threads, 1);
    const NoiseSource source(seed, sample_ids, noise, model.batch);
    float* const result = pointer<float>("out", out, model.batch > 0);
    const ChainArguments arguments = chain_arguments(model.batch, model.x, steps, source, result, trajectory);
    const char* outcome = "finished";
    without_interpreter_lock([&] {
        if (inspect && cpu::first_outside(model.x, model.count(), 0.0f, 1.0f) >= 0) {
            outcome = "outside";
            return;
        }
        cpu::langevin_chain(kernels, model.shape, model.weights, arguments, chosen, threads);
        const float most = std::numeric_limits<float>::max();
        if (inspect && cpu::first_outside(result, model.count(), -most, most) >= 0) outcome = "diverged";
    });
    return outcome;
}

// out: (batch, C, H, W)
void autoencoder_forward(const Model& model, const std::string& isa, const std::string& form, uintptr_t out,
                         int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    check_least("threads", threads, 1);
    float* result = pointer<float>("out", out, model.batch > 0);
    without_interpreter_lock([&] {
        cpu::autoencoder_forward(kernels, model.shape, model.weights, model.batch, model.x, result, chosen, threads);
    });
}

// actions: (kind, step, which) of every action, one after the other. Simulates the program, so that no kernel is ever
// asked for a step, checkpoint or record that is not there.
std::vector<cpu::GradientAction> check_actions(const std::vector<int64_t>& numbers, int64_t n_steps,
                                               int64_t checkpoints, int64_t records) {
    using cpu::GradientAction;
    if (numbers.size() % 3 != 0) fail("actions", "three numbers each", std::to_string(numbers.size()) + " numbers");
    std::vector<GradientAction> actions;
    std::vector<int64_t> saved((size_t)checkpoints + 1, -1);  // step before which each checkpoint was taken
    saved[0] = 0;
    int64_t state = -1, recorded = -1, recorded_steps = 0, reversed = n_steps;
    const auto check = [](bool holds, const char* what, size_t n) {
        if (!holds) fail("actions", what, "action " + std::to_string(n));
    };
    for (size_t n = 0; n < numbers.size() / 3; ++n) {
        const GradientAction action{numbers[3 * n], numbers[3 * n + 1], numbers[3 * n + 2]};
        const int64_t step = action.step, which = action.which;
        switch (action.kind) {
            case GradientAction::load:
                check(which >= 0 && which <= checkpoints && saved[(size_t)which] == step, "a checkpoint of that step",
                      n);
                state = step;
                break;
            case GradientAction::save:
                check(which >= 1 && which <= checkpoints && state == step, "a checkpoint number and the state's step",
                      n);
                saved[(size_t)which] = step;
                break;
            case GradientAction::advance:
            case GradientAction::record:
                check(state == step && which >= 0 && which <= n_steps - step, "steps from the state's own on", n);
                state = step + which;
                if (action.kind == GradientAction::advance) break;
                check(which <= records, "as many steps as there are records", n);
                recorded = step;
                recorded_steps = which;
                break;
            case GradientAction::reverse:
                check(recorded == step && recorded_steps == which && step + which == reversed, "the recorded steps", n);
                reversed = step;
                break;
            default: check(false, "a kind from 0 to 4", n);
        }
        actions.push_back(action);
    }
    if (reversed != 0) fail("actions", "a way back over all steps", std::to_string(reversed) + " steps left");
    return actions;
}

// cotangent, gradient: (batch, C, H, W); actions, checkpoints and records: a plan of
// fastmalade/backends/gradient_plan.py; weight_gradient: (all weights,), or 0 where it is not wanted
void chain_gradient(const Model& model, const std::string& isa, const std::string& form, const Steps& steps,
                    uint64_t seed, uintptr_t sample_ids, uintptr_t noise, uintptr_t cotangent, uintptr_t gradient,
                    uintptr_t weight_gradient, const std::vector<int64_t>& actions, int64_t checkpoints,
                    int64_t records, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    check_least("threads", threads, 1);
    check_least("checkpoints", checkpoints, 0);
    check_least("records", records, 0);
    const std::vector<cpu::GradientAction> program = check_actions(actions, steps.count(), checkpoints, records);
    const NoiseSource source(seed, sample_ids, noise, model.batch);
    const ChainArguments arguments = chain_arguments(model.batch, model.x, steps, source, nullptr, false);
    cpu::GradientArguments back{};
    back.cotangent = pointer<const float>("cotangent", cotangent, model.batch > 0);
    back.gradient = pointer<float>("gradient", gradient, model.batch > 0);
    back.actions = program.data();
    back.n_actions = (int64_t)program.size();
    back.checkpoints = checkpoints;
    back.records = records;
    float* const of_weights = pointer<float>("weight_gradient", weight_gradient, false);
    without_interpreter_lock([&] {
        cpu::chain_gradient(kernels, model.shape, model.weights, arguments, back, of_weights, chosen, threads);
    });
}

// out: (batch, C, H, W); cotangent: the same, or 0 for 2 (x - r(x))
void autoencoder_gradient(const Model& model, const std::string& isa, const std::string& form, uintptr_t cotangent,
                          double scale, double own, uintptr_t out, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    check_least("threads", threads, 1);
    cpu::JacobianArguments arguments{};
    arguments.batch = model.batch;
    arguments.x = model.x;
    arguments.cotangent = pointer<const float>("cotangent", cotangent, false);
    arguments.scale = (float)scale;
    arguments.own = (float)own;
    arguments.out = pointer<float>("out", out, model.batch > 0);
    without_interpreter_lock(
        [&] { cpu::autoencoder_gradient(kernels, model.shape, model.weights, arguments, chosen, threads); });
}

// As langevin_chain, its activations kept; None where there are no steps or these would take more than `most_bytes`,
// which is no limit where it is negative. out: (batch, C, H, W)
std::unique_ptr<RecordedCall> recorded_chain(const Model& model, const std::string& isa, const std::string& form,
                                             const std::shared_ptr<Steps>& steps, uint64_t seed, uintptr_t sample_ids,
                                             uintptr_t noise, uintptr_t out, int threads, int64_t most_bytes) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    check_least("threads", threads, 1);
    if (most_bytes >= 0) {
        if (steps->count() == 0) return nullptr;
        const int64_t record =
            cpu::gradient_bytes(kernels, model.shape, false).record;  // of a group of images and a step
        if (model.batch > most_bytes * kernels.lanes / record / steps->count()) return nullptr;
    }
    const NoiseSource source(seed, sample_ids, noise, model.batch);
    float* const result = pointer<float>("out", out, model.batch > 0);
    const ChainArguments arguments = chain_arguments(model.batch, model.x, *steps, source, result, false);
    auto call = std::make_unique<RecordedCall>(steps, model, kernels, chosen, threads);
    without_interpreter_lock([&] { cpu::recorded_chain(call->kept, model.weights, arguments, threads); });
    return call;
}

// cotangent, gradient: (batch, C, H, W). False, and nothing is done, where a weight was written to since.
bool chain_reverse(const RecordedCall& call, uintptr_t cotangent, uintptr_t gradient, int threads) {
    check_least("threads", threads, 1);
    if (call.weights_written_to()) return false;
    const int64_t batch = call.kept.batch;
    const float* from = pointer<const float>("cotangent", cotangent, batch > 0);
    float* to = pointer<float>("gradient", gradient, batch > 0);
    // The way back reads the steps alone: what it needs of the noise is in the activations.
    const NoiseSource none(0, 0, 0, 0);
    const ChainArguments arguments = chain_arguments(batch, nullptr, *call.steps, none, nullptr, false);
    without_interpreter_lock([&] { cpu::chain_reverse(call.kept, arguments, from, to, threads); });
    return true;
}

// Of one thread, but for `state` and `record`, of which it may keep several. weight_sums: 0 without `weights`
py::dict gradient_bytes(const std::string& isa, const std::vector<int64_t>& sizes, bool weights) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const AutoencoderShape shape = check_shape(sizes);
    const cpu::GradientMemory bytes = cpu::gradient_bytes(kernels, shape, weights);
    const int64_t images = cpu::kWeightTasks * kernels.lanes;
    py::dict facts;
    facts["fixed"] = bytes.fixed;
    facts["state"] = bytes.state;
    facts["record"] = bytes.record;
    facts["weight_sums"] = weights ? images * cpu::weight_sum_bytes(kernels, shape) : 0;
    return facts;
}

// z: (batch, elements), sample_ids: (batch,)
void standard_normal(const std::string& isa, uint64_t seed, uintptr_t sample_ids, int64_t batch, int64_t step,
                     int64_t elements, uintptr_t z, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    check_step(step);
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    check_least("threads", threads, 1);
    const bool any = batch > 0 && elements > 0;
    const int64_t* ids = pointer<const int64_t>("sample_ids", sample_ids, any);
    float* result = pointer<float>("z", z, any);
    without_interpreter_lock(
        [&] { cpu::standard_normal(kernels, seed, ids, batch, (uint32_t)step, elements, result, threads); });
}

// words: (batch, 4 counters), sample_ids: (batch,)
void philox_words(const std::string& isa, uint64_t seed, uintptr_t sample_ids, int64_t batch, int64_t step,
                  int64_t counters, uintptr_t words, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    check_step(step);
    check_least("batch", batch, 0);
    check_least("counters", counters, 0);
    check_least("threads", threads, 1);
    const bool any = batch > 0 && counters > 0;
    const int64_t* ids = pointer<const int64_t>("sample_ids", sample_ids, any);
    int64_t* result = pointer<int64_t>("words", words, any);
    without_interpreter_lock(
        [&] { cpu::philox_words(kernels, seed, ids, batch, (uint32_t)step, counters, result, threads); });
}

// x, y: (n,)
void tanh_of_array(const std::string& isa, uintptr_t x, int64_t n, uintptr_t y) {
    const cpu::Kernels& kernels = find_kernels(isa);
    check_least("n", n, 0);
    const float* in = pointer<const float>("x", x, n > 0);
    float* result = pointer<float>("y", y, n > 0);
    without_interpreter_lock([&] { kernels.tanh(in, n, result); });
}

// x, reconstruction, noise or 0, out: (batch, elements), sample_ids: (batch,) or 0 for 0 .. batch-1
void langevin_update(const std::string& isa, int64_t batch, int64_t elements, uintptr_t x, uintptr_t reconstruction,
                     double step_size, double noise_scale, double low, double high, uint64_t seed, uintptr_t sample_ids,
                     int64_t step, uintptr_t noise, uintptr_t out, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    check_step(step);
    check_least("batch", batch, 0);
    check_least("elements", elements, 0);
    check_least("threads", threads, 1);
    check_finite("step_size", {(float)step_size});
    check_finite("noise_scale", {(float)noise_scale});
    if (!(low <= high)) fail("clamp bounds", "low <= high", std::to_string(low) + " and " + std::to_string(high));
    const bool any = batch > 0 && elements > 0;
    const NoiseSource source(seed, sample_ids, noise, batch);
    cpu::UpdateArguments arguments{};
    arguments.batch = batch;
    arguments.elements = elements;
    arguments.x = pointer<const float>("x", x, any);
    arguments.reconstruction = pointer<const float>("reconstruction", reconstruction, any);
    arguments.step_size = (float)step_size;
    arguments.noise_scale = (float)noise_scale;
    arguments.low = (float)low;
    arguments.high = (float)high;
    arguments.seed = source.seed;
    arguments.sample_ids = source.sample_ids;
    arguments.step = (uint32_t)step;
    arguments.noise = source.given;
    arguments.out = pointer<float>("out", out, any);
    without_interpreter_lock([&] { cpu::langevin_update(kernels, arguments, threads); });
}

// values: (n,)
int64_t check_range(uintptr_t values, int64_t n, double low, double high) {
    check_least("n", n, 0);
    const float* numbers = pointer<const float>("values", values, n > 0);
    // Short arrays are scanned faster than the lock changes hands.
    if (n < 65536) return cpu::first_outside(numbers, n, (float)low, (float)high);
    int64_t first = -1;
    without_interpreter_lock([&] { first = cpu::first_outside(numbers, n, (float)low, (float)high); });
    return first;
}

double fma_ceiling(const std::string& isa, double seconds) {
    const cpu::Kernels& kernels = find_kernels(isa);
    if (!(seconds > 0 && seconds <= 60)) fail("seconds", "more than 0 and at most 60", std::to_string(seconds));
    double rate = 0.0;
    without_interpreter_lock([&] { rate = cpu::multiply_add_rate(kernels, seconds); });
    return rate;
}

// [(stage, seconds of one image and one step)]
py::list stage_times(const std::string& isa, const std::string& form, const std::vector<int64_t>& sizes,
                     const std::vector<uintptr_t>& weight_addresses, int64_t repeats) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    if (chosen == cpu::Form::automatic) fail("form", "throughput, quad or latency", form);
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("repeats", repeats, 1);
    std::array<double, cpu::kStages> seconds;
    without_interpreter_lock([&] { seconds = cpu::stage_seconds(kernels, shape, weights, chosen, repeats); });
    py::list named;
    for (size_t n = 0; n < seconds.size(); ++n) named.append(py::make_tuple(cpu::kStageNames[n], seconds[n]));
    return named;
}

py::dict pool_info() {
    const cpu::PoolInfo info = cpu::pool_info();
    py::dict facts;
    facts["cpus"] = info.cpus;
    facts["workers"] = info.workers;
    facts["calls"] = info.calls;
    facts["joins"] = info.joins;
    facts["most_at_work"] = info.most_at_work;
    return facts;
}

py::dict packed_cache_info() {
    const cpu::PackedCacheInfo info = cpu::packed_cache_info();
    py::dict facts;
    facts["entries"] = info.entries;
    facts["most_entries"] = info.most_entries;
    facts["bytes"] = info.bytes;
    facts["most_entry_bytes"] = info.most_entry_bytes;
    facts["hits"] = info.hits;
    facts["misses"] = info.misses;
    return facts;
}

int64_t scratch_bytes(const std::string& isa, const std::vector<int64_t>& sizes) {
    return cpu::scratch_bytes(find_kernels(isa), check_shape(sizes));
}

// An environment variable, or None where it is not set or empty. For calls on one image: os.environ encodes the name,
// and raises and catches an error where it is not set.
py::object environment(const char* name) {
    const char* const value = std::getenv(name);
    return value && *value ? py::object(py::str(value)) : py::object(py::none());
}

int64_t lanes(const std::string& isa) { return find_kernels(isa).lanes; }

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Native CPU kernels of fastmalade; arrays are addresses, see fastmalade/backends/cpu/calls.py";
    m.def("isas_built", &isas_built);
    m.def("isas_supported", &isas_supported);
    m.def("environment", &environment, py::arg("name"));
    m.def("lanes", &lanes, py::arg("isa"));
    m.def("scratch_bytes", &scratch_bytes, py::arg("isa"), py::arg("shape"));
    py::class_<Model>(m, "Model", "Addresses of a batch of images and of the ten weights, checked")
        .def(py::init(&make_model), py::arg("batch"), py::arg("sizes"), py::arg("weights"), py::arg("x"))
        .def_readonly("tensors", &Model::tensors)
        .def("versions", [](const Model& model) { return versions(model.tensors); })
        .def("requires_grad", &requires_grad);
    py::class_<NetworkReader>(m, "NetworkReader", "Finds the weights of networks that are exactly Table 8")
        .def(py::init<py::capsule, py::tuple, py::object>(), py::arg("table"), py::arg("types"), py::arg("definition"))
        .def("read", &NetworkReader::read, py::arg("x"), py::arg("network"));
    m.def("read_model", &read_model, py::arg("table"), py::arg("types"), py::arg("x"), py::arg("weights"));
    py::class_<Steps, std::shared_ptr<Steps>>(m, "Steps", "Step sizes, noise scales and clamp bounds, checked")
        .def(py::init<const std::vector<double>&, const std::vector<double>&, const std::vector<double>&,
                      const std::vector<double>&>(),
             py::arg("step_sizes"), py::arg("noise_scales"), py::arg("lows"), py::arg("highs"));
    m.def("langevin_chain", &langevin_chain, py::arg("model"), py::arg("isa"), py::arg("form"), py::arg("steps"),
          py::arg("seed"), py::arg("sample_ids"), py::arg("noise"), py::arg("out"), py::arg("trajectory"),
          py::arg("inspect"), py::arg("threads"));
    m.def("autoencoder_forward", &autoencoder_forward, py::arg("model"), py::arg("isa"), py::arg("form"),
          py::arg("out"), py::arg("threads"));
    m.def("chain_gradient", &chain_gradient, py::arg("model"), py::arg("isa"), py::arg("form"), py::arg("steps"),
          py::arg("seed"), py::arg("sample_ids"), py::arg("noise"), py::arg("cotangent"), py::arg("gradient"),
          py::arg("weight_gradient"), py::arg("actions"), py::arg("checkpoints"), py::arg("records"),
          py::arg("threads"));
    py::class_<RecordedCall>(m, "RecordedCall", "A chain with the activations of all steps kept")
        .def_property_readonly("nbytes", [](const RecordedCall& call) { return call.kept.bytes(); })
        .def("weights_written_to", &RecordedCall::weights_written_to);
    m.def("recorded_chain", &recorded_chain, py::arg("model"), py::arg("isa"), py::arg("form"), py::arg("steps"),
          py::arg("seed"), py::arg("sample_ids"), py::arg("noise"), py::arg("out"), py::arg("threads"),
          py::arg("most_bytes"));
    m.def("chain_reverse", &chain_reverse, py::arg("call"), py::arg("cotangent"), py::arg("gradient"),
          py::arg("threads"));
    m.def("autoencoder_gradient", &autoencoder_gradient, py::arg("model"), py::arg("isa"), py::arg("form"),
          py::arg("cotangent"), py::arg("scale"), py::arg("own"), py::arg("out"), py::arg("threads"));
    m.def("gradient_bytes", &gradient_bytes, py::arg("isa"), py::arg("shape"), py::arg("weights"));
    m.def("standard_normal", &standard_normal, py::kw_only(), py::arg("isa"), py::arg("seed"), py::arg("sample_ids"),
          py::arg("batch"), py::arg("step"), py::arg("elements"), py::arg("z"), py::arg("threads"));
    m.def("philox_words", &philox_words, py::kw_only(), py::arg("isa"), py::arg("seed"), py::arg("sample_ids"),
          py::arg("batch"), py::arg("step"), py::arg("counters"), py::arg("words"), py::arg("threads"));
    m.def("langevin_update", &langevin_update, py::kw_only(), py::arg("isa"), py::arg("batch"), py::arg("elements"),
          py::arg("x"), py::arg("reconstruction"), py::arg("step_size"), py::arg("noise_scale"), py::arg("low"),
          py::arg("high"), py::arg("seed"), py::arg("sample_ids"), py::arg("step"), py::arg("noise"), py::arg("out"),
          py::arg("threads"));
    m.def("check_range", &check_range, py::arg("values"), py::arg("n"), py::arg("low"), py::arg("high"));
    m.def("fma_ceiling", &fma_ceiling, py::arg("isa"), py::arg("seconds"));
    m.def("stage_times", &stage_times, py::arg("isa"), py::arg("form"), py::arg("shape"), py::arg("weights"),
          py::arg("repeats"));
    m.def("pool_info", &pool_info);
    m.def("packed_cache_info", &packed_cache_info);
    m.def("tanh", &tanh_of_array, py::kw_only(), py::arg("isa"), py::arg("x"), py::arg("n"), py::arg("y"));
}
