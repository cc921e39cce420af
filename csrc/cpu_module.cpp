// fastmalade._cpu: checks arguments and calls kernels/cpu. Arrays come as addresses and sizes, so that the module needs
// neither torch nor numpy; the caller in fastmalade/backends/cpu/calls.py owns them and has checked dtype and contiguity.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cpu_arguments.h"
#include "exchange.h"
#include "plain_call.h"
#include "recorded_call.h"

#include "cpu/host/engine.h"
#include "cpu/host/model_cache.h"
#include "cpu/host/pool.h"

namespace {

// x: (batch, C, H, W), noise: (n_steps, batch, C, H, W) or 0, sample_ids: (batch,) or 0 for 0 .. batch-1, out: as
// ChainArguments::out.
void langevin_chain(const std::string& isa, const std::string& form, int64_t batch, const std::vector<int64_t>& sizes,
                    const std::vector<uintptr_t>& weight_addresses, uintptr_t x, const Settings& settings,
                    uint64_t seed, uintptr_t sample_ids, uintptr_t noise, uintptr_t out, bool trajectory, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("threads", threads, 1);
    std::vector<int64_t> own_ids;
    const ChainArguments arguments = settings.arguments(
        batch, pointer<const float>("x", x, batch > 0), seed, sample_ids_or_default(sample_ids, batch, own_ids),
        pointer<const float>("noise", noise, false), pointer<float>("out", out, batch > 0), trajectory);
    without_interpreter_lock([&] { cpu::langevin_chain(kernels, shape, weights, arguments, chosen, threads); });
}

// x, out: (batch, C, H, W)
void autoencoder_forward(const std::string& isa, const std::string& form, int64_t batch,
                         const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses, uintptr_t x,
                         uintptr_t out, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("batch", batch, 0);
    check_least("threads", threads, 1);
    const float* images = pointer<const float>("x", x, batch > 0);
    float* result = pointer<float>("out", out, batch > 0);
    without_interpreter_lock(
        [&] { cpu::autoencoder_forward(kernels, shape, weights, batch, images, result, chosen, threads); });
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

// x, cotangent, gradient: (batch, C, H, W); the rest as langevin_chain.
void chain_gradient(const std::string& isa, const std::string& form, int64_t batch, const std::vector<int64_t>& sizes,
                    const std::vector<uintptr_t>& weight_addresses, uintptr_t x, const Settings& settings,
                    uint64_t seed, uintptr_t sample_ids, uintptr_t noise, uintptr_t cotangent, uintptr_t gradient,
                    const std::vector<int64_t>& actions, int64_t checkpoints, int64_t records, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("threads", threads, 1);
    check_least("checkpoints", checkpoints, 0);
    check_least("records", records, 0);
    const std::vector<cpu::GradientAction> program =
        check_actions(actions, (int64_t)settings.a.size(), checkpoints, records);
    std::vector<int64_t> own_ids;
    const ChainArguments arguments = settings.arguments(batch, pointer<const float>("x", x, batch > 0), seed,
                                                        sample_ids_or_default(sample_ids, batch, own_ids),
                                                        pointer<const float>("noise", noise, false), nullptr, false);
    const cpu::GradientArguments back{pointer<const float>("cotangent", cotangent, batch > 0),
                                      pointer<float>("gradient", gradient, batch > 0),
                                      program.data(),
                                      (int64_t)program.size(),
                                      checkpoints,
                                      records};
    without_interpreter_lock([&] { cpu::chain_gradient(kernels, shape, weights, arguments, back, chosen, threads); });
}

// x, out: (batch, C, H, W); cotangent: the same, or 0 for 2 (x - r(x))
void autoencoder_gradient(const std::string& isa, const std::string& form, int64_t batch,
                          const std::vector<int64_t>& sizes, const std::vector<uintptr_t>& weight_addresses,
                          uintptr_t x, uintptr_t cotangent, double scale, double own, uintptr_t out, int threads) {
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("batch", batch, 0);
    check_least("threads", threads, 1);
    const cpu::JacobianArguments arguments{batch,
                                           pointer<const float>("x", x, batch > 0),
                                           pointer<const float>("cotangent", cotangent, false),
                                           (float)scale,
                                           (float)own,
                                           pointer<float>("out", out, batch > 0)};
    without_interpreter_lock([&] { cpu::autoencoder_gradient(kernels, shape, weights, arguments, chosen, threads); });
}

// As langevin_chain, without a trajectory.
std::unique_ptr<RecordedCall> recorded_chain(const std::string& isa, const std::string& form, int64_t batch,
                                             const std::vector<int64_t>& sizes,
                                             const std::vector<uintptr_t>& weight_addresses, uintptr_t x,
                                             const std::shared_ptr<Settings>& settings, uint64_t seed,
                                             uintptr_t sample_ids, uintptr_t noise, uintptr_t out, int threads) {
    const AutoencoderShape shape = check_shape(sizes);
    const AutoencoderWeights weights = check_weights(weight_addresses);
    check_least("threads", threads, 1);
    check_least("batch", batch, 0);
    const cpu::Kernels& kernels = find_kernels(isa);
    const cpu::Form chosen = find_form(form);
    auto call = std::make_unique<RecordedCall>(settings, batch, kernels, shape, chosen, threads);
    std::vector<int64_t> own_ids;
    const ChainArguments arguments = settings->arguments(
        batch, pointer<const float>("x", x, batch > 0), seed, sample_ids_or_default(sample_ids, batch, own_ids),
        pointer<const float>("noise", noise, false), pointer<float>("out", out, batch > 0), false);
    without_interpreter_lock([&] { cpu::recorded_chain(call->kept, weights, arguments, threads); });
    return call;
}

// cotangent, gradient: (batch, C, H, W)
void chain_reverse(const RecordedCall& call, uintptr_t cotangent, uintptr_t gradient, int threads) {
    check_least("threads", threads, 1);
    const bool any = call.kept.batch > 0;
    const float* from = pointer<const float>("cotangent", cotangent, any);
    float* to = pointer<float>("gradient", gradient, any);
    const ChainArguments arguments = call.reverse_arguments();
    without_interpreter_lock([&] { cpu::chain_reverse(call.kept, arguments, from, to, threads); });
}

py::dict gradient_bytes(const std::string& isa, const std::vector<int64_t>& sizes) {
    const cpu::GradientMemory bytes = cpu::gradient_bytes(find_kernels(isa), check_shape(sizes));
    py::dict facts;
    facts["fixed"] = bytes.fixed;
    facts["state"] = bytes.state;
    facts["record"] = bytes.record;
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
    std::vector<int64_t> own_ids;
    const cpu::UpdateArguments arguments{batch,
                                         elements,
                                         pointer<const float>("x", x, any),
                                         pointer<const float>("reconstruction", reconstruction, any),
                                         (float)step_size,
                                         (float)noise_scale,
                                         (float)low,
                                         (float)high,
                                         seed,
                                         sample_ids_or_default(sample_ids, batch, own_ids),
                                         (uint32_t)step,
                                         pointer<const float>("noise", noise, false),
                                         pointer<float>("out", out, any)};
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

int64_t lanes(const std::string& isa) { return find_kernels(isa).lanes; }

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Native CPU kernels of fastmalade; arrays are addresses, see fastmalade/backends/cpu/calls.py";
    m.def("isas_built", &isas_built);
    m.def("isas_supported", &isas_supported);
    m.def("lanes", &lanes, py::arg("isa"));
    m.def("scratch_bytes", &scratch_bytes, py::arg("isa"), py::arg("shape"));
    m.def("read_model", &fastmalade::exchange::read_model, py::arg("table"), py::arg("x"), py::arg("weights"));
    py::class_<Settings, std::shared_ptr<Settings>>(m, "Settings", "Step sizes, noise scales and clamp bounds, checked")
        .def(py::init<const std::vector<double>&, const std::vector<double>&, const std::vector<double>&,
                      const std::vector<double>&>(),
             py::arg("step_sizes"), py::arg("noise_scales"), py::arg("lows"), py::arg("highs"));
    py::enum_<PlainResult>(m, "PlainResult")
        .value("refused", PlainResult::refused)
        .value("finite", PlainResult::finite)
        .value("diverged", PlainResult::diverged);
    py::class_<PlainRecording>(m, "PlainRecording",
                               "A chain with its activations kept, and the weights that it ran with");
    m.def("plain_recorded_chain", &plain_recorded_chain, py::arg("table"), py::arg("types"), py::arg("x"),
          py::arg("out"), py::arg("modules"), py::arg("settings"), py::arg("seed"), py::arg("sample_ids"),
          py::arg("threads"), py::arg("any_backend"), py::arg("most_bytes"));
    m.def("plain_chain_reverse", &plain_chain_reverse, py::arg("recording"), py::arg("table"), py::arg("types"),
          py::arg("cotangent"), py::arg("gradient"), py::arg("threads"));
    m.def("plain_chain", &plain_chain, py::arg("table"), py::arg("types"), py::arg("x"), py::arg("out"),
          py::arg("modules"), py::arg("settings"), py::arg("seed"), py::arg("sample_ids"), py::arg("threads"),
          py::arg("any_backend"), py::arg("recorded"), py::arg("checked"));
    m.def("langevin_chain", &langevin_chain, py::kw_only(), py::arg("isa"), py::arg("form"), py::arg("batch"),
          py::arg("shape"), py::arg("weights"), py::arg("x"), py::arg("settings"), py::arg("seed"),
          py::arg("sample_ids"), py::arg("noise"), py::arg("out"), py::arg("trajectory"), py::arg("threads"));
    m.def("autoencoder_forward", &autoencoder_forward, py::kw_only(), py::arg("isa"), py::arg("form"), py::arg("batch"),
          py::arg("shape"), py::arg("weights"), py::arg("x"), py::arg("out"), py::arg("threads"));
    m.def("chain_gradient", &chain_gradient, py::kw_only(), py::arg("isa"), py::arg("form"), py::arg("batch"),
          py::arg("shape"), py::arg("weights"), py::arg("x"), py::arg("settings"), py::arg("seed"),
          py::arg("sample_ids"), py::arg("noise"), py::arg("cotangent"), py::arg("gradient"), py::arg("actions"),
          py::arg("checkpoints"), py::arg("records"), py::arg("threads"));
    py::class_<RecordedCall>(m, "RecordedCall", "A chain with the activations of all steps kept")
        .def_property_readonly("nbytes", [](const RecordedCall& call) { return call.kept.bytes(); });
    m.def("recorded_chain", &recorded_chain, py::kw_only(), py::arg("isa"), py::arg("form"), py::arg("batch"),
          py::arg("shape"), py::arg("weights"), py::arg("x"), py::arg("settings"), py::arg("seed"),
          py::arg("sample_ids"), py::arg("noise"), py::arg("out"), py::arg("threads"));
    m.def("chain_reverse", &chain_reverse, py::kw_only(), py::arg("call"), py::arg("cotangent"), py::arg("gradient"),
          py::arg("threads"));
    m.def("autoencoder_gradient", &autoencoder_gradient, py::kw_only(), py::arg("isa"), py::arg("form"),
          py::arg("batch"), py::arg("shape"), py::arg("weights"), py::arg("x"), py::arg("cotangent"), py::arg("scale"),
          py::arg("own"), py::arg("out"), py::arg("threads"));
    m.def("gradient_bytes", &gradient_bytes, py::arg("isa"), py::arg("shape"));
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
