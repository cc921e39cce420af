// The engine over the emulation as a shared object for ctypes. Every function returns null, or the text of an error,
// which the next call overwrites.
#include <string>

#include "cuda/engine.h"
#include "cuda/tensor_core.cuh"

using namespace fastmalade;
using namespace fastmalade::cuda;

namespace {

std::string last_error;

template <class F>
const char* guarded(F work) {
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        last_error = error.what();
        return last_error.c_str();
    }
}

}  // namespace

extern "C" {

// tests/helpers/emulated.py has the same structs, field by field.

struct EmulatedChoice {
    int form, images, cluster, resident, blocks, threads, shared_bytes, packed_floats, precision;
};

struct EmulatedCall {
    EmulatedChoice choice;
    int64_t sizes[5];  // channels, height, width, hidden1, hidden2
    const float* weights[10];
    float* workspace;
    int64_t batch;
};

struct EmulatedSteps {
    int count;
    const float* numbers;  // (4, count): step sizes, noise scales, lows, highs
};

}  // extern "C"

namespace {

Call call_of(const EmulatedCall& given) {
    const EmulatedChoice& chosen = given.choice;
    Call call{};
    Choice& c = call.choice;
    c.form = (FormName)chosen.form, c.precision = (Precision)chosen.precision;
    c.images = chosen.images, c.cluster = chosen.cluster, c.resident = chosen.resident != 0;
    c.blocks = chosen.blocks, c.threads = chosen.threads;
    c.shared_bytes = chosen.shared_bytes, c.packed_floats = chosen.packed_floats;
    call.shape = shape_of(given.sizes);
    call.weights = AutoencoderWeights::of(given.weights);
    call.batch = given.batch, call.workspace = given.workspace;
    return call;
}

Steps steps_of(const EmulatedSteps& given) {
    const auto row = [&](int n) {
        return std::vector<float>(given.numbers + n * given.count, given.numbers + (n + 1) * given.count);
    };
    return {row(0), row(1), row(2), row(3)};
}

}  // namespace

extern "C" {

// device: multiprocessors, shared bytes, most blocks of a cluster.
const char* emulated_choose(const int64_t* sizes, int64_t batch, int gradient, const int* device, int form, int images,
                            int cluster, int precision, EmulatedChoice* found) {
    return guarded([&] {
        const Request request{(FormName)form, images, cluster, (Precision)precision};
        const Choice c = choose(shape_of(sizes), batch, gradient != 0, {device[0], device[1], device[2]}, request);
        *found = {(int)c.form, c.images,       c.cluster,       c.resident,      c.blocks,
                  c.threads,   c.shared_bytes, c.packed_floats, (int)c.precision};
    });
}

const char* emulated_chain(const EmulatedCall* call, const float* x, const EmulatedSteps* steps,
                           const NoiseSource* noise, float* out, int trajectory) {
    return guarded([&] { langevin_chain(call_of(*call), x, steps_of(*steps), *noise, out, trajectory != 0); });
}

const char* emulated_forward(const EmulatedCall* call, const float* x, float* out) {
    return guarded([&] { autoencoder_forward(call_of(*call), x, out); });
}

const char* emulated_gradient(const EmulatedCall* call, const float* states, const EmulatedSteps* steps,
                              const NoiseSource* noise, const float* cotangent, float* gradient,
                              float* noise_gradient) {
    return guarded([&] {
        langevin_chain_gradient(call_of(*call), states, steps_of(*steps), *noise, cotangent, gradient, noise_gradient);
    });
}

const char* emulated_error_gradient(const EmulatedCall* call, const float* x, float* gradient) {
    return guarded([&] { reconstruction_error_gradient(call_of(*call), x, gradient); });
}

const char* emulated_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction,
                            const Step* step, const NoiseSource* noise, float* out) {
    return guarded([&] { langevin_update(batch, elements, x, reconstruction, *step, *noise, out, nullptr); });
}

const char* emulated_noise(int64_t batch, int64_t elements, const NoiseSource* noise, uint32_t step, float* z,
                           int64_t* words) {
    return guarded([&] { standard_normal(batch, elements, *noise, step, z, words, nullptr); });
}

// x, rounded, high, low: (count,). What the tensor cores take of x for tf32, and its two parts for tf32x3.
void emulated_operands(int64_t count, const float* x, float* rounded, float* high, float* low) {
    for (int64_t n = 0; n < count; ++n) {
        const Operand<Precision::tf32x3> parts = split(x[n]);
        rounded[n] = round_to_tf32(x[n]), high[n] = parts.high, low[n] = parts.low;
    }
}
}
