// The operations of one instruction set: compiled once for each, with its flags and FASTMALADE_ISA its name.
// Everything but the table at the end has internal linkage.
#include "cpu/kernels.h"

#include "cpu/isa/ceiling.h"
#include "cpu/isa/chain_gradient.h"
#include "cpu/isa/langevin_update.h"
#include "cpu/isa/stages.h"

#define FASTMALADE_STRING_OF(name) #name
#define FASTMALADE_STRING(name) FASTMALADE_STRING_OF(name)

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

template <class Form>
void langevin_chain(const AutoencoderShape& s, const float* packed, const ChainArguments& c, int64_t first,
                    int64_t count, float* scratch) {
    const ForwardScratch<Form> part(s);
    const Images<Form> images(s, packed, first, count, scratch);
    float* state = scratch + part.state;
    images.read(c.x, state);
    for (int64_t t = 0; t < c.n_steps; ++t) {
        if (c.trajectory) images.write(state, c.out + t * c.batch * s.pixels());
        images.template step<false>(c, t, part, part.activations(scratch), KeptEnd{});
    }
    images.write(state, c.out + (c.trajectory ? c.n_steps * c.batch * s.pixels() : 0));
}

template <class Form>
void autoencoder_forward(const AutoencoderShape& s, const float* packed, const float* x, float* out, int64_t first,
                         int64_t count, float* scratch) {
    const ForwardScratch<Form> part(s);
    const Images<Form> images(s, packed, first, count, scratch);
    images.read(x, scratch + part.state);
    images.template apply_autoencoder<false>(part, part.activations(scratch), KeptEnd{});
    images.write(scratch + part.state, out);
}

constexpr Update typical_update() {
    Update update;
    update.step_size = 0.3f;
    update.noise_scale = 0.03f;
    update.low = -1.0f;
    update.high = 2.0f;
    return update;
}

void last_stage(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                const ForwardScratch<Throughput>& part, float* scratch) {
    GroupNoise noise = {};
    noise.count = kLanes;
    finish_step<false>(s, packed, at, scratch + part.even, scratch + part.state, typical_update(), noise,
                       scratch + part.sums, KeptEnd{});
}

template <int IMAGES>
void last_stage(const AutoencoderShape& s, const float* packed, const PackedLayout<Group<IMAGES>>& at,
                const ForwardScratch<Group<IMAGES>>& part, float* scratch) {
    for (int64_t image = 0; image < IMAGES * s.pixels(); image += s.pixels()) {
        standard_normal(0, 0, 0, s.pixels(), scratch + part.noise);
        last_sums(s, packed, at, scratch + part.even + image / 4, scratch + part.sums);
        finish_step<false>(s, scratch + part.sums, scratch + part.state + image, typical_update(), scratch + part.noise,
                           KeptEnd{});
    }
}

// One stage by itself, on whatever finite numbers the scratch memory holds.
template <class Form>
void run_stage(const AutoencoderShape& s, const float* packed, int stage, float* scratch) {
    const PackedLayout<Form> at(s);
    const ForwardScratch<Form> part(s);
    const Activations to = part.activations(scratch);
    switch (stage) {
        case 0: return conv1(s, packed, at, to, part, scratch);
        case 1: return conv2(s, packed, at, to, part, scratch);
        case 2: return deconv1(s, packed, at, to, part, scratch);
        case 3: return even_pixels(s, packed, at, to.upsampled, to.even);
        default: return last_stage(s, packed, at, part, scratch);
    }
}

int64_t packing(const AutoencoderShape& s) {
    const int64_t layers = conv2_transform(s).size * 100 + deconv1_transform(s).size;
    return (layers * 100 + conv2_transpose_transform(s).size) * 100 + deconv1_transpose_transform(s).size;
}

template <class Form>
int64_t packed_floats(const AutoencoderShape& s) {
    return PackedLayout<Form>(s).floats;
}

template <class Form>
int64_t transpose_floats(const AutoencoderShape& s) {
    return TransposeLayout<Form>(s).floats;
}

template <class Form>
int64_t scratch_floats(const AutoencoderShape& s) {
    return ForwardScratch<Form>(s).floats;
}

void tanh_of_array(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += kLanes) store_some(y + i, tanh(load_some(x + i, n - i)), n - i);
}

template <class Form>
constexpr FormKernels form_kernels() {
    FormKernels table = {};
    table.images = Form::images;
    table.packed_floats = packed_floats<Form>;
    table.pack = pack_model<Form>;
    table.transpose_floats = transpose_floats<Form>;
    table.pack_transposes = pack_transposes<Form>;
    table.scratch_floats = scratch_floats<Form>;
    table.langevin_chain = langevin_chain<Form>;
    table.run_stage = run_stage<Form>;
    table.autoencoder_forward = autoencoder_forward<Form>;
    table.gradient_memory = gradient_memory<Form>;
    table.chain_gradient = chain_gradient<Form>;
    table.recorded_chain = recorded_chain<Form>;
    table.chain_reverse = chain_reverse<Form>;
    table.autoencoder_gradient = autoencoder_gradient<Form>;
    return table;
}

constexpr Kernels all_kernels() {
    Kernels table = {};
    table.isa = FASTMALADE_STRING(FASTMALADE_ISA);
    table.lanes = kLanes;
    table.call_time[throughput] = kLanes * 0.6;
    table.call_time[quad] = kLanes > 4 ? 3.1 : kLanes * 0.6;  // with four lanes it is the throughput form
    table.call_time[latency] = 1.0;
    table.packing = packing;
    table.forms[throughput] = form_kernels<Throughput>();
    table.forms[quad] = form_kernels<Quad>();
    table.forms[latency] = form_kernels<Latency>();
    table.weight_sum_floats = weight_sum_floats;
    table.weight_gradient = weight_gradient;
    table.philox_words = philox_words;
    table.standard_normal = standard_normal;
    table.tanh = tanh_of_array;
    table.langevin_update = langevin_update;
    table.multiply_adds = multiply_adds;
    return table;
}

// Made by the compiler: nothing of this object runs unless it is called through the table.
constexpr Kernels kTable = all_kernels();

}  // namespace

extern const Kernels kernels = kTable;

}  // namespace fastmalade::cpu::FASTMALADE_ISA
