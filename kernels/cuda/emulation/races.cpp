// The kernels with one CPU thread for every CUDA thread, for ThreadSanitizer: small images, few threads, every form and
// every barrier. `races BARRIER` leaves that barrier out, `races 0 digits` runs the fixed shape with all its threads,
// `races BARRIER tensor` the chain on tensor cores with all of its own, `races BARRIER split` blocks that share an
// image through device memory. Prints the sum of what came out.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/emulation/emulation.h"
#include "cuda/engine.h"

using namespace fastmalade;
using namespace fastmalade::cuda;

namespace {

// Any numbers of the size of weights.
std::vector<float> numbers(size_t count, uint32_t seed) {
    std::vector<float> values(count);
    for (float& value : values) {
        seed = seed * 1664525u + 1013904223u;
        value = (float)(seed >> 8) * 0x1p-24f - 0.5f;
    }
    return values;
}

double sum_of(const std::vector<float>& values) {
    double sum = 0.0;
    for (const float value : values) sum += value;
    return sum;
}

// The chain, and where it has the form the gradient.
double run(FormName form, int images, int cluster, int threads, const AutoencoderShape& s, int64_t batch,
           Precision precision = Precision::fp32) {
    const DeviceFacts device{2, 227 * 1024, 16};
    const int64_t sizes[10] = {s.hidden1 * s.channels * 25,  s.hidden1, s.hidden2 * s.hidden1 * 25, s.hidden2,
                               s.hidden2 * s.hidden1 * 81,   s.hidden1, s.hidden1 * s.channels,     s.channels,
                               s.channels * s.channels * 25, s.channels};
    std::vector<std::vector<float>> arrays;
    for (uint32_t n = 0; n < 10; ++n) arrays.push_back(numbers((size_t)sizes[n], n));
    const AutoencoderWeights weights{arrays[0].data(), arrays[1].data(), arrays[2].data(), arrays[3].data(),
                                     arrays[4].data(), arrays[5].data(), arrays[6].data(), arrays[7].data(),
                                     arrays[8].data(), arrays[9].data()};
    const size_t state = (size_t)(batch * s.pixels());
    const std::vector<float> a{0.3f, 0.2f}, d{0.1f, 0.1f}, low{0.0f, 0.0f}, high{0.4f, 0.4f};
    const Steps steps{a, d, low, high};
    const Noise noise{7, nullptr, nullptr, nullptr};
    std::vector<float> states = numbers(3 * state, 11), cotangent = numbers(state, 12), gradient(state);
    Choice choice = choose(s, batch, false, device, form, images, cluster, precision);
    choice.threads = threads;
    std::vector<float> workspace((size_t)choice.packed_floats, std::numeric_limits<float>::quiet_NaN());
    const std::vector<float> x(states.begin(), states.begin() + (std::ptrdiff_t)state);
    langevin_chain(choice, s, weights, workspace.data(), batch, x.data(), steps, noise, states.data(), true, false,
                   nullptr);
    if (form == FormName::tensor) return sum_of(states);  // its gradient is that of the other forms
    choice = choose(s, batch, true, device, form, images, cluster);
    choice.threads = threads;
    workspace.resize((size_t)choice.packed_floats);
    langevin_chain_gradient(choice, s, weights, workspace.data(), batch, states.data(), steps, noise, cotangent.data(),
                            gradient.data(), nullptr, nullptr);
    return sum_of(gradient);
}

}  // namespace

int main(int count, char** arguments) {
    emulation::omitted_barrier = count > 1 ? std::atoi(arguments[1]) : 0;
    double sum = 0.0;
    const std::string fixed = count > 2 ? arguments[2] : "";
    if (fixed == "split") {
        sum += run(FormName::split, 1, 2, 2, {1, 8, 4, 3, 2}, 3);
    } else if (fixed == "tensor") {
        for (const Precision precision : {Precision::tf32, Precision::tf32x3}) {
            sum += run(FormName::tensor, 8, 1, 256, {1, 28, 28, 10, 25}, 1, precision);
        }
    } else if (fixed == "digits") {
        // One group: blocks of other groups would run after it, not beside it.
        sum += run(FormName::digits, 8, 1, 256, {1, 28, 28, 10, 25}, 1);
    } else {
        const AutoencoderShape s{1, 8, 4, 3, 2};
        sum += run(FormName::general, 2, 1, 4, s, 5);
        sum += run(FormName::cluster, 1, 2, 2, s, 3);
    }
    std::printf("%.6f\n", sum);
    return sum == sum ? 0 : 1;
}
