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
// Every one a thread of the CPU, which takes longer to start than its share of a loop.
constexpr int kThreads = 4;
constexpr int64_t kMostBlocks = 1;
#else
constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;
#endif

Grid grid_of(const Choice& c) {
    return Grid{c.blocks, c.threads, c.cluster, c.shared_bytes, c.form == FormName::split};
}

AnyShape narrow(const AutoencoderShape& s) {
    return AnyShape{(int)s.channels, (int)s.height, (int)s.width, (int)s.hidden1, (int)s.hidden2};
}

// Floats of the packed model before what the blocks of the form split exchange, a whole number of cache lines.
int floats_before_exchange(const AutoencoderShape& shape, bool gradient) {
    const PackedLayout at = packed_layout<SmallTiles>(narrow(shape));
    return round_up(gradient ? at.floats : at.forward_floats, kLineFloats);
}

// One thread for each of `items`, within reason: the kernels loop.
Grid elementwise_grid(int64_t items) {
    return Grid{(int)std::max<int64_t>(1, std::min((items + kThreads - 1) / kThreads, kMostBlocks)), kThreads, 1, 0};
}

void pack(const Choice& c, const AutoencoderShape& shape, const AutoencoderWeights& weights, bool gradient,
          float* packed, void* stream) {
    const AnyShape s = narrow(shape);
    // The counters of the form split start from zero; its planes are written before they are read.
    const int end = c.form == FormName::split
                        ? floats_before_exchange(shape, gradient) + c.blocks / c.cluster * kLineFloats
                        : c.packed_floats;
    const Grid grid = elementwise_grid(end);
    const auto run = [&](auto kernel) {
        launch("packing the weights", kernel, grid, stream, s, weights, gradient, end, packed);
    };
    if (c.form == FormName::digits) run(pack_kernel<RowTiles>);
    if (c.form == FormName::general) run(pack_kernel<GeneralTiles>);
    if (c.form == FormName::cluster || c.form == FormName::split) run(pack_kernel<SmallTiles>);
    if (c.form == FormName::tensor) {
        const auto kernel = c.precision == Precision::tf32 ? pack_tensor_kernel<Precision::tf32>
                                                           : pack_tensor_kernel<Precision::tf32x3>;
        launch("packing the weights", kernel, grid, stream, weights, packed);
    }
}

void launch_chain(const Choice& c, const ChainParameters& p, void* stream) {
    const auto run = [&](auto kernel) { launch("the Langevin chain", kernel, grid_of(c), stream, p); };
    switch (c.form) {
        case FormName::digits: return c.images == 8 ? run(chain_kernel<Digits<8>>) : run(chain_kernel<Digits<4>>);
        case FormName::general:
            return c.resident ? run(chain_kernel<General<true>>) : run(chain_kernel<General<false>>);
        case FormName::cluster:
            return c.resident ? run(chain_kernel<Cluster<true>>) : run(chain_kernel<Cluster<false>>);
        case FormName::split: return c.resident ? run(chain_kernel<Split<true>>) : run(chain_kernel<Split<false>>);
        case FormName::tensor:
            if (c.precision == Precision::tf32) {
                return c.resident ? run(tensor_chain_kernel<TensorForm<Precision::tf32, true>>)
                                  : run(tensor_chain_kernel<TensorForm<Precision::tf32, false>>);
            }
            return c.resident ? run(tensor_chain_kernel<TensorForm<Precision::tf32x3, true>>)
                              : run(tensor_chain_kernel<TensorForm<Precision::tf32x3, false>>);
        case FormName::automatic: break;
    }
    throw std::logic_error("form: expected one that choose() has returned for this kernel, got another");
}

void launch_gradient(const Choice& c, const GradientParameters& p, void* stream) {
    const auto run = [&](auto kernel) { launch("the gradient of the chain", kernel, grid_of(c), stream, p); };
    switch (c.form) {
        case FormName::digits:
            return c.images == 8 ? run(gradient_kernel<DigitsGradient<8>>) : run(gradient_kernel<DigitsGradient<4>>);
        case FormName::general: return run(gradient_kernel<GeneralGradient>);
        case FormName::cluster: return run(gradient_kernel<ClusterGradient>);
        case FormName::split: return run(gradient_kernel<SplitGradient>);
        case FormName::tensor:
        case FormName::automatic: break;
    }
    throw std::logic_error("form: expected one that choose() has returned for this kernel, got another");
}

template <class Parameters>
Parameters common(const Choice& c, const AutoencoderShape& s, int64_t batch, float* packed, const Noise& noise) {
    constexpr bool gradient = std::is_same_v<Parameters, GradientParameters>;
    Parameters p{};
    p.channels = (int)s.channels, p.height = (int)s.height, p.width = (int)s.width;
    p.hidden1 = (int)s.hidden1, p.hidden2 = (int)s.hidden2;
    p.images = c.images, p.blocks = c.cluster, p.batch = batch, p.packed = packed;
    if (c.form == FormName::split) p.exchange = packed + floats_before_exchange(s, gradient);
    p.noise = NoiseSource{noise.seed, noise.seed_pointer, noise.sample_ids, noise.given};
    return p;
}

// Steps first .. first+count-1 of the chain.
template <class Parameters>
void set_steps(Parameters& p, const Steps& steps, int first, int count) {
    p.first_step = first, p.steps = count;
    for (int t = 0; t < count; ++t) {
        p.settings.step_size[t] = steps.step_sizes[(size_t)(first + t)];
        p.settings.noise_scale[t] = steps.noise_scales[(size_t)(first + t)];
        p.settings.low[t] = steps.lows[(size_t)(first + t)];
        p.settings.high[t] = steps.highs[(size_t)(first + t)];
    }
}

}  // namespace

void langevin_chain(const Choice& choice, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                    float* workspace, int64_t batch, const float* x, const Steps& steps, const Noise& noise, float* out,
                    bool trajectory, bool reconstruct_only, void* stream) {
    const int n_steps = reconstruct_only ? 1 : (int)steps.step_sizes.size();
    if (batch == 0 || n_steps == 0) return;
    pack(choice, shape, weights, false, workspace, stream);
    auto p = common<ChainParameters>(choice, shape, batch, workspace, noise);
    p.trajectory = trajectory, p.reconstruct_only = reconstruct_only;
    const int64_t state = batch * shape.pixels();
    p.x = x;
    for (int first = 0; first < n_steps; first += kMostSteps) {
        const int count = std::min(n_steps - first, kMostSteps);
        if (reconstruct_only) {
            p.steps = 1;
        } else {
            set_steps(p, steps, first, count);
        }
        p.out = trajectory ? out + (first + 1) * state : out;
        launch_chain(choice, p, stream);
        // The next launch may read what it then overwrites: a block reads its images before it writes them.
        p.x = trajectory ? out + (first + count) * state : out;
    }
}

void langevin_chain_gradient(const Choice& choice, const AutoencoderShape& shape, const AutoencoderWeights& weights,
                             float* workspace, int64_t batch, const float* states, const Steps& steps,
                             const Noise& noise, const float* cotangent, float* gradient, float* noise_gradient,
                             void* stream) {
    const int n_steps = (int)steps.step_sizes.size();
    if (batch == 0 || n_steps == 0) return;
    pack(choice, shape, weights, true, workspace, stream);
    auto p = common<GradientParameters>(choice, shape, batch, workspace, noise);
    const int64_t state = batch * shape.pixels();
    p.cotangent = cotangent, p.gradient = gradient;
    for (int end = n_steps; end > 0;) {
        const int first = (end - 1) / kMostSteps * kMostSteps;
        set_steps(p, steps, first, end - first);
        p.states = states + first * state;
        p.noise_gradient = noise_gradient ? noise_gradient + first * state : nullptr;
        launch_gradient(choice, p, stream);
        p.cotangent = gradient;
        end = first;
    }
}

void reconstruction_error_gradient(const Choice& choice, const AutoencoderShape& shape,
                                   const AutoencoderWeights& weights, float* workspace, int64_t batch, const float* x,
                                   float* gradient, void* stream) {
    if (batch == 0) return;
    pack(choice, shape, weights, true, workspace, stream);
    auto p = common<GradientParameters>(choice, shape, batch, workspace, Noise{});
    // The step size stays 0: the layers' products are then added to the error, of which nothing is taken away.
    p.steps = 1, p.states = x, p.gradient = gradient, p.reconstruction_error = true;
    launch_gradient(choice, p, stream);
}

void langevin_update(int64_t batch, int64_t elements, const float* x, const float* reconstruction, float step_size,
                     float noise_scale, float low, float high, const Noise& noise, uint32_t step, float* out,
                     void* stream) {
    if (batch == 0 || elements == 0) return;
    const UpdateParameters p{
        batch, elements, x,          reconstruction,     noise.given,      out, step_size, noise_scale,
        low,   high,     noise.seed, noise.seed_pointer, noise.sample_ids, step};
    launch("the Langevin update", update_kernel, elementwise_grid(batch * ((elements + 3) / 4)), stream, p);
}

void standard_normal(int64_t batch, int64_t elements, const Noise& noise, uint32_t step, float* z, int64_t* words,
                     void* stream) {
    if (batch == 0 || elements == 0) return;
    const NoiseParameters p{batch, elements, noise.seed, noise.seed_pointer, noise.sample_ids, step, z, words};
    launch("the noise", noise_kernel, elementwise_grid(batch * ((elements + 3) / 4)), stream, p);
}

}  // namespace fastmalade::cuda
