// Launches the kernels: packs the weights, cuts a chain into launches of at most kMostSteps steps.
#include "cuda/engine.h"

#include <algorithm>
#include <type_traits>

#include "cuda/forms.cuh"
#include "cuda/langevin_chain_gradient.cuh"
#include "cuda/langevin_update.cuh"
#include "cuda/launch.cuh"
#include "cuda/packed_model.cuh"
#include "cuda/tensor_chain.cuh"

namespace fastmalade::cuda {
namespace {

#if defined(FASTMALADE_EMULATION_THREADS)
// Each of them is a thread of the CPU, which takes longer to start than to do its share of a loop.
constexpr int kElementwiseThreads = 4;
constexpr int64_t kMostElementwiseBlocks = 1;
#else
constexpr int kElementwiseThreads = kBlockThreads;
constexpr int64_t kMostElementwiseBlocks = 1 << 16;
#endif

Grid grid_of(const Choice& c) {
    Grid grid{c.blocks, c.threads};
    grid.cluster = c.cluster, grid.shared_bytes = c.shared_bytes;
    return grid;
}

// One thread for each of `items`, within reason: the kernels loop.
Grid elementwise_grid(int64_t items) {
    const int64_t blocks = (items + kElementwiseThreads - 1) / kElementwiseThreads;
    return Grid{(int)std::max<int64_t>(1, std::min(blocks, kMostElementwiseBlocks)), kElementwiseThreads};
}

void pack(const Call& call, bool gradient) {
    const Choice& c = call.choice;
    const AutoencoderShape& s = call.shape;
    const AnyShape shape{(int)s.channels, (int)s.height, (int)s.width, (int)s.hidden1, (int)s.hidden2};
    const Grid grid = elementwise_grid(c.packed_floats);
    const auto run = [&](auto kernel) {
        launch("packing the weights", kernel, grid, call.stream, shape, call.weights, gradient, call.workspace);
    };
    if (c.form == FormName::digits) run(pack_kernel<RowTiles>);
    if (c.form == FormName::general) run(pack_kernel<GeneralTiles>);
    if (c.form == FormName::cluster) run(pack_kernel<SmallTiles>);
    if (c.form == FormName::tensor) {
        const auto kernel = c.precision == Precision::tf32 ? pack_tensor_kernel<Precision::tf32>
                                                           : pack_tensor_kernel<Precision::tf32x3>;
        launch("packing the weights", kernel, grid, call.stream, call.weights, call.workspace);
    }
}

[[noreturn]] void refuse_form() {
    throw std::logic_error("form: expected one that choose() has returned for this kernel, got another");
}

void launch_chain(const Call& call, const ChainParameters& p) {
    const Choice& c = call.choice;
    const auto run = [&](auto kernel) { launch("the Langevin chain", kernel, grid_of(c), call.stream, p); };
    switch (c.form) {
        case FormName::digits: return c.images == 8 ? run(chain_kernel<Digits<8>>) : run(chain_kernel<Digits<4>>);
        case FormName::general:
            return c.resident ? run(chain_kernel<General<true>>) : run(chain_kernel<General<false>>);
        case FormName::cluster:
            return c.resident ? run(chain_kernel<Cluster<true>>) : run(chain_kernel<Cluster<false>>);
        case FormName::tensor:
            if (c.precision == Precision::tf32) {
                return c.resident ? run(tensor_chain_kernel<TensorForm<Precision::tf32, true>>)
                                  : run(tensor_chain_kernel<TensorForm<Precision::tf32, false>>);
            }
            return c.resident ? run(tensor_chain_kernel<TensorForm<Precision::tf32x3, true>>)
                              : run(tensor_chain_kernel<TensorForm<Precision::tf32x3, false>>);
        case FormName::automatic: break;
    }
    refuse_form();
}

void launch_gradient(const Call& call, const GradientParameters& p) {
    const Choice& c = call.choice;
    const auto run = [&](auto kernel) { launch("the gradient of the chain", kernel, grid_of(c), call.stream, p); };
    switch (c.form) {
        case FormName::digits:
            return c.images == 8 ? run(gradient_kernel<Gradient<Digits<8>>>)
                                 : run(gradient_kernel<Gradient<Digits<4>>>);
        case FormName::general: return run(gradient_kernel<Gradient<General<false>>>);
        case FormName::cluster: return run(gradient_kernel<Gradient<Cluster<false>>>);
        case FormName::tensor:
        case FormName::automatic: break;
    }
    refuse_form();
}

template <class Parameters>
Parameters parameters_of(const Call& call, const NoiseSource& noise) {
    const AutoencoderShape& s = call.shape;
    Parameters p{};
    p.channels = (int)s.channels, p.height = (int)s.height, p.width = (int)s.width;
    p.hidden1 = (int)s.hidden1, p.hidden2 = (int)s.hidden2;
    p.images = call.choice.images, p.batch = call.batch, p.packed = call.workspace, p.noise = noise;
    return p;
}

// Steps first .. first+count-1 of the chain.
void set_steps(LaunchSteps& launched, const Steps& steps, int first, int count) {
    launched.first = first, launched.count = count;
    for (int t = 0; t < count; ++t) {
        const size_t at = (size_t)(first + t);
        launched.step_size[t] = steps.step_sizes[at], launched.noise_scale[t] = steps.noise_scales[at];
        launched.low[t] = steps.lows[at], launched.high[t] = steps.highs[at];
    }
}

}  // namespace

void langevin_chain(const Call& call, const float* x, const Steps& steps, const NoiseSource& noise, float* out,
                    bool trajectory) {
    const int n_steps = (int)steps.step_sizes.size();
    if (call.batch == 0 || n_steps == 0) return;
    pack(call, false);
    auto p = parameters_of<ChainParameters>(call, noise);
    p.trajectory = trajectory, p.x = x;
    const int64_t state = call.batch * call.shape.pixels();
    for (int first = 0; first < n_steps; first += kMostSteps) {
        const int count = std::min(n_steps - first, kMostSteps);
        set_steps(p.steps, steps, first, count);
        p.out = trajectory ? out + (first + 1) * state : out;
        launch_chain(call, p);
        // The next launch may read what it then overwrites: a block reads its images before it writes them.
        p.x = trajectory ? out + (first + count) * state : out;
    }
}

void autoencoder_forward(const Call& call, const float* x, float* out) {
    if (call.batch == 0) return;
    pack(call, false);
    auto p = parameters_of<ChainParameters>(call, NoiseSource{});
    p.steps.count = 1, p.reconstruct_only = true, p.x = x, p.out = out;
    launch_chain(call, p);
}

void langevin_chain_gradient(const Call& call, const float* states, const Steps& steps, const NoiseSource& noise,
                             const float* cotangent, float* gradient, float* noise_gradient) {
    const int n_steps = (int)steps.step_sizes.size();
    if (call.batch == 0 || n_steps == 0) return;
    pack(call, true);
    auto p = parameters_of<GradientParameters>(call, noise);
    const int64_t state = call.batch * call.shape.pixels();
    p.cotangent = cotangent, p.gradient = gradient;
    for (int end = n_steps; end > 0;) {
        const int first = (end - 1) / kMostSteps * kMostSteps;
        set_steps(p.steps, steps, first, end - first);
        p.states = states + first * state;
        p.noise_gradient = noise_gradient ? noise_gradient + first * state : nullptr;
        launch_gradient(call, p);
        p.cotangent = gradient;
        end = first;
    }
}

void reconstruction_error_gradient(const Call& call, const float* x, float* gradient) {
    if (call.batch == 0) return;
    pack(call, true);
    auto p = parameters_of<GradientParameters>(call, NoiseSource{});
    // The step size stays 0: the layers' products are then added to the error, and nothing is taken from it.
    p.steps.count = 1, p.states = x, p.gradient = gradient, p.reconstruction_error = true;
    launch_gradient(call, p);
}

void langevin_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction, const Step& step,
                     const NoiseSource& noise, float* out, void* stream) {
    if (batch == 0 || elements == 0) return;
    UpdateParameters p{};
    p.batch = batch, p.elements = elements;
    p.x = x, p.reconstruction = reconstruction, p.out = out;
    p.step = step, p.noise = noise;
    launch("the Langevin update", update_kernel, elementwise_grid(batch * ((elements + 3) / 4)), stream, p);
}

void standard_normal(int64_t batch, int64_t elements, const NoiseSource& noise, uint32_t step, float* z, int64_t* words,
                     void* stream) {
    if (batch == 0 || elements == 0) return;
    NoiseParameters p{};
    p.batch = batch, p.elements = elements, p.step = step;
    p.noise = noise, p.z = z, p.words = words;
    launch("the noise", noise_kernel, elementwise_grid(batch * ((elements + 3) / 4)), stream, p);
}

}  // namespace fastmalade::cuda
