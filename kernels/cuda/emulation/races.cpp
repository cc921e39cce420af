// The kernels with one CPU thread for every CUDA thread, for ThreadSanitizer: small images, few threads, every form and
// every barrier. `races BARRIER` leaves that barrier out (0 for none), `races 0 digits` runs the fixed shape with all
// its threads, `races BARRIER tensor` the chain on tensor cores with all of its own. Prints the sum of what came out.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/emulation/emulation.h"
#include "cuda/engine.h"
#include "cuda/shapes.cuh"

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

// Floats of the ten arrays of a model.
std::vector<size_t> sizes_of(const AutoencoderShape& s) {
    const int64_t c = s.channels, h1 = s.hidden1, h2 = s.hidden2;
    std::vector<size_t> sizes;
    for (const int64_t size : {h1 * c * 25, h1, h2 * h1 * 25, h2, h2 * h1 * 81, h1, h1 * c, c, c * c * 25, c}) {
        sizes.push_back((size_t)size);
    }
    return sizes;
}

// The chain, and its gradient where the form has one. threads: of a block.
double run(const Request& request, int threads, const AutoencoderShape& s, int64_t batch) {
    const DeviceFacts device{2, 227 * 1024, 16};
    std::vector<std::vector<float>> arrays;
    std::vector<const float*> addresses;
    for (const size_t size : sizes_of(s)) arrays.push_back(numbers(size, (uint32_t)arrays.size()));
    for (const auto& array : arrays) addresses.push_back(array.data());
    const size_t state = (size_t)(batch * s.pixels());
    const Steps steps{{0.3f, 0.2f}, {0.1f, 0.1f}, {0.0f, 0.0f}, {0.4f, 0.4f}};
    NoiseSource noise{};
    noise.seed = 7;
    std::vector<float> states = numbers(3 * state, 11), cotangent = numbers(state, 12), gradient(state);
    std::vector<float> workspace;
    const auto call_of = [&](bool of_gradient, const Request& wanted) {
        Call call{};
        call.choice = choose(s, batch, of_gradient, device, wanted);
        call.choice.threads = threads;
        workspace.assign((size_t)call.choice.packed_floats, std::numeric_limits<float>::quiet_NaN());
        call.shape = s, call.weights = AutoencoderWeights::of(addresses.data()), call.batch = batch;
        call.workspace = workspace.data();
        return call;
    };
    const std::vector<float> x(states.begin(), states.begin() + (std::ptrdiff_t)state);
    langevin_chain(call_of(false, request), x.data(), steps, noise, states.data(), true);
    if (request.form == FormName::tensor) return sum_of(states);  // its gradient is that of the other forms
    langevin_chain_gradient(call_of(true, request), states.data(), steps, noise, cotangent.data(), gradient.data(),
                            nullptr);
    return sum_of(gradient);
}

}  // namespace

int main(int count, char** arguments) {
    emulation::omitted_barrier = count > 1 ? std::atoi(arguments[1]) : 0;
    double sum = 0.0;
    const std::string form = count > 2 ? arguments[2] : "";
    // With the digit's shape one group: blocks of other groups would run after it, not at the same time.
    const AutoencoderShape digit{1, 28, 28, 10, 25}, small{1, 8, 4, 3, 2};
    if (form == "tensor") {
        for (const Precision precision : {Precision::tf32, Precision::tf32x3}) {
            sum += run(Request{FormName::tensor, 8, 1, precision}, kBlockThreads, digit, 1);
        }
    } else if (form == "digits") {
        sum += run(Request{FormName::digits, 8, 1}, kBlockThreads, digit, 1);
    } else {
        sum += run(Request{FormName::general, 2, 1}, 4, small, 5);
        sum += run(Request{FormName::cluster, 1, 2}, 2, small, 3);
    }
    std::printf("%.6f\n", sum);
    return sum == sum ? 0 : 1;
}
