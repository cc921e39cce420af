// Runs every operation of one instruction set on odd shapes, batches and thread counts and compares: forms with each
// other, threads with one thread, the vector Philox with the scalar one. Meant for sanitizer builds, and for a 16-lane
// build of the kernels on a processor without AVX-512. Built and run by tools/check_native.py.
//
// usage: native_driver          checks, exit status 1 on a difference
//        native_driver dump     also prints the bits of every result, to be compared between builds
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "common/philox.h"
#include "cpu/host/engine.h"
#include "cpu/host/model_cache.h"
#include "cpu/host/pool.h"

#ifndef FASTMALADE_ISA
#error "FASTMALADE_ISA names the instruction set the kernels were compiled as"
#endif

namespace fastmalade::cpu::FASTMALADE_ISA {
extern const Kernels kernels;
}

namespace {

using namespace fastmalade;

const cpu::Kernels& kernels() { return cpu::FASTMALADE_ISA::kernels; }

std::atomic<int> failures{0};
bool dump = false;

// To compare builds, one thread and each form once are enough: what depends on neither is found without "dump".
std::vector<cpu::Form> forms() {
    std::vector<cpu::Form> all = {cpu::Form::throughput, cpu::Form::quad, cpu::Form::latency};
    if (!dump) all.push_back(cpu::Form::automatic);
    return all;
}

std::vector<int> thread_counts() { return dump ? std::vector<int>{1} : std::vector<int>{1, 3}; }

void expect(bool condition, const char* what) {
    if (!condition) {
        std::printf("FAILED: %s\n", what);
        ++failures;
    }
}

// Deterministic values in [-scale, scale].
std::vector<float> values(int64_t n, float scale, uint32_t stream) {
    std::vector<float> v((size_t)n);
    for (int64_t i = 0; i < n; ++i) {
        const PhiloxWords w = philox4x32(PhiloxWords{{(uint32_t)i, stream, 0, 0}}, 1, 2);
        v[(size_t)i] = scale * (2.0f * philox_uniform(w.w[0]) - 1.0f);
    }
    return v;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void print_bits(const std::vector<float>& v) {
    if (!dump) return;
    uint64_t hash = 1469598103934665603ull;  // FNV-1a over the words
    for (const float f : v) {
        uint32_t word;
        std::memcpy(&word, &f, sizeof word);
        hash = (hash ^ word) * 1099511628211ull;
    }
    std::printf("%zu %016llx\n", v.size(), (unsigned long long)hash);
}

void check_noise() {
    for (const int64_t counters : {0, 1, 3, 4, 5, 16, 17, 33}) {
        const uint64_t seed = 0xfedcba9876543210ull;
        const std::vector<int64_t> ids = {0, -1, 1ll << 40};
        std::vector<int64_t> words((size_t)(counters * 4 * 3), -1);
        cpu::philox_words(kernels(), seed, ids.data(), 3, 7, counters, words.data(), 2);
        bool equal = true;
        for (size_t b = 0; b < 3; ++b) {
            for (int64_t k = 0; k < counters; ++k) {
                const PhiloxWords w =
                    philox4x32(PhiloxWords{{(uint32_t)k, 7, (uint32_t)ids[b], (uint32_t)((uint64_t)ids[b] >> 32)}},
                               (uint32_t)seed, (uint32_t)(seed >> 32));
                for (int j = 0; j < 4; ++j) equal &= words[b * (size_t)counters * 4 + (size_t)(4 * k + j)] == w.w[j];
            }
        }
        expect(equal, "vector Philox differs from scalar Philox");
        for (int64_t elements = 4 * counters; elements > 4 * counters - 4 && elements >= 0; --elements) {
            std::vector<float> z((size_t)(elements * 3), std::numeric_limits<float>::quiet_NaN());
            cpu::standard_normal(kernels(), seed, ids.data(), 3, 7, elements, z.data(), 2);
            for (const float value : z) expect(std::isfinite(value), "a deviate was not written");
            print_bits(z);
        }
    }
}

// The way back by every program: all steps recorded, one at a time from the start, one at a time from a checkpoint.
void check_gradient(const AutoencoderShape& s, const AutoencoderWeights& weights, const ChainArguments& chain) {
    using cpu::GradientAction;
    const std::vector<float> cotangent = values(chain.batch * s.pixels(), 1.0f, 13);
    const GradientAction whole[] = {
        {GradientAction::load, 0, 0}, {GradientAction::record, 0, 2}, {GradientAction::reverse, 0, 2}};
    const GradientAction again[] = {{GradientAction::load, 0, 0},   {GradientAction::advance, 0, 1},
                                    {GradientAction::record, 1, 1}, {GradientAction::reverse, 1, 1},
                                    {GradientAction::load, 0, 0},   {GradientAction::record, 0, 1},
                                    {GradientAction::reverse, 0, 1}};
    const GradientAction kept[] = {{GradientAction::load, 0, 0},    {GradientAction::advance, 0, 1},
                                   {GradientAction::save, 1, 1},    {GradientAction::advance, 1, 1},
                                   {GradientAction::load, 1, 1},    {GradientAction::record, 1, 1},
                                   {GradientAction::reverse, 1, 1}, {GradientAction::load, 0, 0},
                                   {GradientAction::record, 0, 1},  {GradientAction::reverse, 0, 1}};
    std::vector<float> first, first_of_weights;
    const int64_t layer1 = s.channels * 25 * s.hidden1 + s.hidden1, layer2 = s.hidden1 * 25 * s.hidden2 + s.hidden2;
    const int64_t layer3 = s.hidden2 * 81 * s.hidden1 + s.hidden1, layer4 = s.hidden1 * s.channels + s.channels;
    const int64_t all_weights = layer1 + layer2 + layer3 + layer4 + s.channels * 25 * s.channels + s.channels;
    for (const cpu::Form form : forms()) {
        std::vector<float> gradient(cotangent.size(), std::numeric_limits<float>::quiet_NaN());
        for (const cpu::GradientArguments& g :
             {cpu::GradientArguments{cotangent.data(), gradient.data(), whole, 3, 0, 2},
              cpu::GradientArguments{cotangent.data(), gradient.data(), again, 7, 0, 1},
              cpu::GradientArguments{cotangent.data(), gradient.data(), kept, 10, 1, 1}}) {
            cpu::chain_gradient(kernels(), s, weights, chain, g, nullptr, form, 2);
            if (first.empty()) first = gradient;
            expect(same_bits(first, gradient), "the gradient depends on the form or on what is kept");
            for (const int threads : thread_counts()) {
                std::vector<float> of_weights((size_t)all_weights, std::numeric_limits<float>::quiet_NaN());
                cpu::chain_gradient(kernels(), s, weights, chain, g, of_weights.data(), form, threads);
                if (first_of_weights.empty()) first_of_weights = of_weights;
                expect(same_bits(first, gradient), "the images' gradient depends on whether the weights' is wanted");
                expect(same_bits(first_of_weights, of_weights),
                       "the weights' gradient depends on the form, on threads or on what is kept");
                for (const float value : of_weights) expect(std::isfinite(value), "a weight's gradient is missing");
            }
        }
        for (const float* given : {cotangent.data(), (const float*)nullptr}) {
            cpu::autoencoder_gradient(kernels(), s, weights,
                                      cpu::JacobianArguments{chain.batch, chain.x, given, -1.0f, 1.0f, gradient.data()},
                                      form, 2);
            for (const float value : gradient) expect(std::isfinite(value), "an entry of a product was not written");
            if (form == cpu::Form::throughput) print_bits(gradient);
        }
    }
    print_bits(first);
    print_bits(first_of_weights);
}

void check_chain(const AutoencoderShape& s, int64_t batch, bool given_noise) {
    const int64_t pixels = s.pixels(), n_steps = 2;
    const std::vector<float> w[10] = {values(s.hidden1 * s.channels * 25, 0.4f, 1),  values(s.hidden1, 0.2f, 2),
                                      values(s.hidden2 * s.hidden1 * 25, 0.2f, 3),   values(s.hidden2, 0.2f, 4),
                                      values(s.hidden2 * s.hidden1 * 81, 0.2f, 5),   values(s.hidden1, 0.2f, 6),
                                      values(s.hidden1 * s.channels, 0.5f, 7),       values(s.channels, 0.5f, 8),
                                      values(s.channels * s.channels * 25, 0.3f, 9), values(s.channels, 0.3f, 10)};
    const float* arrays[10];
    for (int n = 0; n < 10; ++n) arrays[n] = w[n].data();
    const AutoencoderWeights weights = AutoencoderWeights::of(arrays);
    const std::vector<float> x = values(batch * pixels, 1.0f, 11), noise = values(n_steps * batch * pixels, 2.0f, 12);
    const std::vector<float> a = {0.3f, 0.2f}, d = {0.1f, 0.05f}, low = {-1.0f, 0.0f}, high = {2.0f, 1.0f};
    std::vector<int64_t> ids;
    for (int64_t b = 0; b < batch; ++b) ids.push_back(b * 1000000007 - 3);
    ChainArguments arguments = {};
    arguments.batch = batch;
    arguments.n_steps = n_steps;
    arguments.x = x.data();
    arguments.step_sizes = a.data();
    arguments.noise_scales = d.data();
    arguments.lows = low.data();
    arguments.highs = high.data();
    arguments.seed = 42;
    arguments.sample_ids = ids.data();
    arguments.noise = given_noise ? noise.data() : nullptr;
    std::vector<float> first;
    for (const cpu::Form form : forms()) {
        for (const int threads : thread_counts()) {
            std::vector<float> out((size_t)((n_steps + 1) * batch * pixels), std::numeric_limits<float>::quiet_NaN());
            arguments.out = out.data();
            arguments.trajectory = true;
            cpu::langevin_chain(kernels(), s, weights, arguments, form, threads);
            if (first.empty()) first = out;
            expect(same_bits(first, out), "the chain depends on form or threads");
            for (const float value : out) expect(std::isfinite(value), "an output was not written");
        }
    }
    print_bits(first);
    std::vector<float> reconstruction((size_t)(batch * pixels), std::numeric_limits<float>::quiet_NaN());
    cpu::autoencoder_forward(kernels(), s, weights, batch, x.data(), reconstruction.data(), cpu::Form::automatic, 2);
    for (const float value : reconstruction) expect(std::fabs(value) <= 1.0f, "r(x) is not within [-1, 1]");
    print_bits(reconstruction);
    arguments.out = nullptr;
    arguments.trajectory = false;
    check_gradient(s, weights, arguments);
}

// The update of one step against the noise and the arithmetic of the other kernels, cut in every way.
void check_update() {
    for (const int64_t elements : {1, 3, 16, 63, 65, 300, 8191, 20001}) {
        const int64_t batch = elements < 100 ? 33 : 3;
        const std::vector<float> x = values(batch * elements, 1.0f, 20), r = values(batch * elements, 1.0f, 21);
        std::vector<int64_t> ids;
        for (int64_t b = 0; b < batch; ++b) ids.push_back(b * 1000000007 - 3);
        std::vector<float> z((size_t)(batch * elements));
        cpu::standard_normal(kernels(), 5, ids.data(), batch, 3, elements, z.data(), 1);
        std::vector<float> first;
        for (const float* noise : {(const float*)nullptr, (const float*)z.data()}) {
            for (const int threads : {1, 2, 3}) {
                std::vector<float> out(x.size(), std::numeric_limits<float>::quiet_NaN());
                cpu::UpdateArguments arguments = {};
                arguments.batch = batch;
                arguments.elements = elements;
                arguments.x = x.data();
                arguments.reconstruction = r.data();
                arguments.step_size = 0.3f;
                arguments.noise_scale = 0.2f;
                arguments.low = -0.5f;
                arguments.high = 0.5f;
                arguments.seed = 5;
                arguments.sample_ids = ids.data();
                arguments.step = 3;
                arguments.noise = noise;
                arguments.out = out.data();
                cpu::langevin_update(kernels(), arguments, threads);
                if (first.empty()) first = out;
                expect(same_bits(first, out), "the update depends on threads or on where its noise comes from");
            }
        }
        for (size_t n = 0; n < first.size(); ++n) {
            const double exact = x[n] + 0.3 * ((double)r[n] - x[n]) + 0.2 * (double)z[n];
            const double bounded = exact < -0.5 ? -0.5 : exact > 0.5 ? 0.5 : exact;
            expect(std::fabs(first[n] - bounded) <= 1e-6, "the update is not x + a (r - x) + d z, clamped");
        }
        print_bits(first);
    }
    const std::vector<float> inside = values(5000, 1.0f, 22);
    expect(cpu::first_outside(inside.data(), 5000, -1.0f, 1.0f) == -1, "a value within its bounds is reported");
    for (const int64_t at : {0, 1, 1023, 1024, 4999}) {
        std::vector<float> odd = inside;
        odd[(size_t)at] = std::numeric_limits<float>::quiet_NaN();
        expect(cpu::first_outside(odd.data(), 5000, -1.0f, 1.0f) == at, "a NaN is not reported where it is");
    }
}

// Callers with and without company, on the pool that all share.
void check_concurrent_callers(const std::vector<AutoencoderShape>& shapes) {
    std::vector<std::thread> callers;
    for (int64_t n = 0; n < 6; ++n)
        callers.emplace_back([&shapes, n] {
            std::vector<float> z(400);
            const int64_t ids[4] = {1, 2, 3, 4};
            for (int round = 0; round < 50; ++round) {
                cpu::standard_normal(kernels(), 9, ids, 4, 0, 100, z.data(), 1 + (int)n % 3);
            }
            check_chain(shapes[(size_t)n % shapes.size()], 9, false);
        });
    for (std::thread& caller : callers) caller.join();
    const cpu::PoolInfo pool = cpu::pool_info();
    expect(pool.workers <= std::max<int64_t>(pool.cpus, std::thread::hardware_concurrency()) - 1,
           "more workers than CPUs beside a caller");
    const cpu::PackedCacheInfo cache = cpu::packed_cache_info();
    expect(cache.hits > 0 && cache.misses > 0 && cache.entries <= cache.most_entries,
           "the packed models are not shared");
}

}  // namespace

int main(int argc, char** argv) {
    dump = argc > 1 && std::strcmp(argv[1], "dump") == 0;
    check_noise();
    const std::vector<AutoencoderShape> shapes = {
        {1, 4, 4, 1, 1},   {1, 28, 28, 10, 25}, {2, 8, 12, 7, 17}, {3, 4, 20, 2, 33},
        {3, 20, 4, 16, 3}, {1, 8, 36, 5, 11},   {2, 12, 44, 3, 6},
    };
    // Transformed layers in several tiles of columns. Quarter-size rows of 9, 13 and 15 columns are longer than a tile
    // and shorter than 16 lanes, one of 17 is longer than both.
    const std::vector<AutoencoderShape> large = {
        {1, 44, 36, 16, 40},
        {1, 24, 52, 7, 17},
        {2, 20, 60, 5, 11},
        {1, 24, 68, 7, 17},
    };
    // Under a sanitizer every image takes seconds: no more of them than reach every branch.
    for (const AutoencoderShape& shape : shapes) {
        check_chain(shape, 0, false);
        check_chain(shape, 1, true);
        check_chain(shape, 7, false);
        check_chain(shape, 17, true);
    }
    for (const AutoencoderShape& shape : large) check_chain(shape, 7, true);
    check_update();
    if (!dump) check_concurrent_callers(shapes);  // their results would come in any order
    std::printf("%s: %d failed\n", kernels().isa, failures.load());
    return failures == 0 ? 0 : 1;
}
