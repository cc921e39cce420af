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

constexpr Update kTypicalUpdate = {false, 0.3f, 0.03f, -1.0f, 2.0f};

void last_stage(const AutoencoderShape& s, const float* packed, const PackedLayout<Throughput>& at,
                const ForwardScratch<Throughput>& part, float* scratch) {
    GroupNoise noise = {};
    noise.count = kLanes;
    finish_step<false>(s, packed, at, scratch + part.even, scratch + part.state, kTypicalUpdate, noise,
                       scratch + part.sums, KeptEnd{});
}

template <int IMAGES>
void last_stage(const AutoencoderShape& s, const float* packed, const PackedLayout<Group<IMAGES>>& at,
                const ForwardScratch<Group<IMAGES>>& part, float* scratch) {
    for (int64_t image = 0; image < IMAGES * s.pixels(); image += s.pixels()) {
        standard_normal(0, 0, 0, s.pixels(), scratch + part.noise);
        last_sums(s, packed, at, scratch + part.even + image / 4, scratch + part.sums);
        finish_step<false>(s, scratch + part.sums, scratch + part.state + image, kTypicalUpdate, scratch + part.noise,
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
    return {Form::images,           packed_floats<Form>,       pack_model<Form>,
            transpose_floats<Form>, pack_transposes<Form>,     scratch_floats<Form>,
            langevin_chain<Form>,   run_stage<Form>,           autoencoder_forward<Form>,
            gradient_memory<Form>,  chain_gradient<Form>,      recorded_chain<Form>,
            chain_reverse<Form>,    autoencoder_gradient<Form>};
}

}  // namespace

extern const Kernels kernels = {
    FASTMALADE_STRING(FASTMALADE_ISA),
    kLanes,
    {kLanes * 0.6, kLanes > 4 ? 3.1 : kLanes * 0.6, 1.0},
    packing,
    {form_kernels<Throughput>(), form_kernels<Quad>(), form_kernels<Latency>()},
    philox_words,
    standard_normal,
    tanh_of_array,
    langevin_update,
    multiply_adds,
};

}  // namespace fastmalade::cpu::FASTMALADE_ISA
