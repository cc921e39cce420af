// The engine over the emulation as a shared object for ctypes. Every function returns null, or the text of an error
// that the next call overwrites.
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

AutoencoderShape shape_of(const int64_t* sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

AutoencoderWeights weights_of(const float* const* w) {
    return {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9]};
}

}  // namespace

extern "C" {

// sizes: (channels, height, width, hidden1, hidden2). device: (multiprocessors, shared bytes, most cluster, threads of
// a block or 0 for the form's own). choice: the form, images, cluster, resident, blocks, threads, shared bytes, packed
// floats, precision.
const char* emulated_choose(const int64_t* sizes, int64_t batch, int gradient, const int* device, int form, int images,
                            int cluster, int precision, int* choice) {
    return guarded([&] {
        const Choice c = choose(shape_of(sizes), batch, gradient != 0, {device[0], device[1], device[2]},
                                (FormName)form, images, cluster, (Precision)precision);
        const int values[9] = {(int)c.form, c.images,       c.cluster,       c.resident,      c.blocks,
                               c.threads,   c.shared_bytes, c.packed_floats, (int)c.precision};
        for (int n = 0; n < 9; ++n) choice[n] = values[n];
    });
}

// settings: (4, n_steps): step sizes, noise scales, lows, highs. Others as langevin_chain in engine.h.
const char* emulated_chain(const int* c, const int64_t* sizes, const float* const* weights, float* workspace,
                           int64_t batch, const float* x, int n_steps, const float* settings, uint64_t seed,
                           const int64_t* seed_pointer, const int64_t* sample_ids, const float* noise, float* out,
                           int trajectory, int reconstruct_only) {
    return guarded([&] {
        const Choice choice{(FormName)c[0], c[1], c[2], c[3] != 0, c[4], c[5], c[6], c[7], (Precision)c[8]};
        const auto row = [&](int n) {
            return std::vector<float>(settings + n * n_steps, settings + (n + 1) * n_steps);
        };
        const std::vector<float> a = row(0), d = row(1), low = row(2), high = row(3);
        langevin_chain(choice, shape_of(sizes), weights_of(weights), workspace, batch, x, {a, d, low, high},
                       {seed, seed_pointer, sample_ids, noise}, out, trajectory != 0, reconstruct_only != 0, nullptr);
    });
}

const char* emulated_gradient(const int* c, const int64_t* sizes, const float* const* weights, float* workspace,
                              int64_t batch, const float* states, int n_steps, const float* settings, uint64_t seed,
                              const int64_t* seed_pointer, const int64_t* sample_ids, const float* noise,
                              const float* cotangent, float* gradient, float* noise_gradient) {
    return guarded([&] {
        const Choice choice{(FormName)c[0], c[1], c[2], c[3] != 0, c[4], c[5], c[6], c[7], (Precision)c[8]};
        const auto row = [&](int n) {
            return std::vector<float>(settings + n * n_steps, settings + (n + 1) * n_steps);
        };
        const std::vector<float> a = row(0), d = row(1), low = row(2), high = row(3);
        langevin_chain_gradient(choice, shape_of(sizes), weights_of(weights), workspace, batch, states,
                                {a, d, low, high}, {seed, seed_pointer, sample_ids, noise}, cotangent, gradient,
                                noise_gradient, nullptr);
    });
}

const char* emulated_error_gradient(const int* c, const int64_t* sizes, const float* const* weights, float* workspace,
                                    int64_t batch, const float* x, float* gradient) {
    return guarded([&] {
        const Choice choice{(FormName)c[0], c[1], c[2], c[3] != 0, c[4], c[5], c[6], c[7]};
        reconstruction_error_gradient(choice, shape_of(sizes), weights_of(weights), workspace, batch, x, gradient,
                                      nullptr);
    });
}

const char* emulated_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction,
                            const float* settings, uint64_t seed, const int64_t* sample_ids, const float* noise,
                            uint32_t step, float* out) {
    return guarded([&] {
        langevin_update(batch, elements, x, reconstruction, settings[0], settings[1], settings[2], settings[3],
                        {seed, nullptr, sample_ids, noise}, step, out, nullptr);
    });
}

// x, rounded, high, low: (count,). What the tensor cores take of x for tf32, and its two parts for tf32x3.
void emulated_operands(int64_t count, const float* x, float* rounded, float* high, float* low) {
    for (int64_t n = 0; n < count; ++n) {
        const Operand<Precision::tf32x3> parts = split(x[n]);
        rounded[n] = round_to_tf32(x[n]), high[n] = parts.high, low[n] = parts.low;
    }
}

const char* emulated_noise(int64_t batch, int64_t elements, uint64_t seed, const int64_t* sample_ids, uint32_t step,
                           float* z, int64_t* words) {
    return guarded(
        [&] { standard_normal(batch, elements, {seed, nullptr, sample_ids, nullptr}, step, z, words, nullptr); });
}
}
