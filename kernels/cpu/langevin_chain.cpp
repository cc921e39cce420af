// The operations of one instruction set: compiled once for each, with its flags and FASTMALADE_ISA its name.
// Everything but the table at the end has internal linkage.
#include "cpu/kernels.h"

#include "cpu/ceiling.h"
#include "cpu/convolution.h"
#include "cpu/forms.h"
#include "cpu/langevin_update.h"
#include "cpu/noise.h"
#include "cpu/tail.h"

#define FASTMALADE_STRING_OF(name) #name
#define FASTMALADE_STRING(name) FASTMALADE_STRING_OF(name)

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Working memory of one call, in floats from its start. `half` serves conv1's output and, once conv2 has read it,
// deconv1's. The margins let a vector begin one float before a row and end a vector's length after it.
template <class Form>
struct Scratch {
    static constexpr int64_t margin = 16;
    int64_t state, half, quarter, even, sums, noise, floats;

    explicit Scratch(const AutoencoderShape& s) : floats(0) {
        const int64_t plane = s.height * s.width * Form::pixel;
        state = take(s.channels * plane);
        half = take(s.hidden1 * plane / 4);
        quarter = take(s.hidden2 * plane / 16);
        even = take(s.channels * plane / 4);
        const bool single = Form::pixel == 1;  // the throughput form keeps sums and noise in registers
        sums = take(single ? s.channels * plane : 0);
        noise = take(single ? s.channels * plane : 0);
        floats += margin;
    }

private:
    int64_t take(int64_t n) {
        const int64_t at = floats + margin;
        floats = (at + n + 15) / 16 * 16;
        return at;
    }
};

// state -> the even pixels of the last transposed convolution.
template <class Form>
void autoencoder_body(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at,
                      const Scratch<Form>& part, float* scratch) {
    const int64_t half_h = s.height / 2, half_w = s.width / 2, quarter_h = s.height / 4, quarter_w = s.width / 4;
    const int64_t half_stride = half_h * half_w * Form::pixel, quarter_stride = quarter_h * quarter_w * Form::pixel;
    float* half = scratch + part.half;
    float* quarter = scratch + part.quarter;

    const Convolution conv1 = {scratch + part.state, s.channels, s.height, s.width, packed + at.conv1,
                               packed + at.conv1_bias, 5, half, s.hidden1, half_w, half_stride,
                               half_w * Form::pixel, Form::pixel};
    for (int64_t q = 0; q < half_h; ++q) convolve_row<Form, ConvolutionStride2>(conv1, q);

    const Convolution conv2 = {half, s.hidden1, half_h, half_w, packed + at.conv2, packed + at.conv2_bias, 5, quarter,
                               s.hidden2, quarter_w, quarter_stride, quarter_w * Form::pixel, Form::pixel};
    for (int64_t q = 0; q < quarter_h; ++q) convolve_row<Form, ConvolutionStride2>(conv2, q);

    // Position (q, p) of phase (odd row, odd column) is output pixel (2q + odd row, 2p + odd column).
    Convolution deconv1 = {quarter, s.hidden2, quarter_h, quarter_w, nullptr, packed + at.deconv1_bias, 0, nullptr,
                           s.hidden1, quarter_w, half_stride, 2 * half_w * Form::pixel, 2 * Form::pixel};
    for (int64_t q = 0; q < quarter_h; ++q) {
        for (int phase = 0; phase < 4; ++phase) {
            deconv1.weights = packed + at.deconv1[phase];
            deconv1.row_taps = 5 - phase / 2;
            deconv1.out = half + (phase / 2 * half_w + phase % 2) * Form::pixel;
            if (phase % 2 == 0) {
                convolve_row<Form, TransposedEven>(deconv1, q);
            } else {
                convolve_row<Form, TransposedOdd>(deconv1, q);
            }
        }
    }
    even_pixels(s, packed, at, half, scratch + part.even);
}

// images: (count, pixels) -> state [pixels][LANES]; lanes beyond the last image repeat it, so that they hold nothing odd.
void gather(const float* images, int64_t pixels, int64_t count, float* state) {
    for (int64_t n = 0; n < pixels; ++n) {
        for (int l = 0; l < LANES; ++l) state[n * LANES + l] = images[(l < count ? l : count - 1) * pixels + n];
    }
}

void scatter(const float* state, int64_t pixels, int64_t count, float* images) {
    for (int64_t l = 0; l < count; ++l) {
        for (int64_t n = 0; n < pixels; ++n) images[l * pixels + n] = state[n * LANES + l];
    }
}

Update step_update(const ChainArguments& c, int64_t t) {
    return Update{false, c.step_sizes[t], c.noise_scales[t], c.lows[t], c.highs[t]};
}

void chain_group(const AutoencoderShape& s, const float* packed, const ChainArguments& c, int64_t first, int64_t count,
                 float* scratch) {
    const PackedLayout<Throughput> at(s);
    const Scratch<Throughput> part(s);
    const int64_t pixels = s.pixels();
    float* state = scratch + part.state;
    GroupNoise noise = {};
    noise.pixels = pixels;
    noise.count = count;
    noise.seed = c.seed;
    for (int l = 0; l < LANES; ++l) {
        const uint64_t id = (uint64_t)c.sample_ids[first + (l < count ? l : count - 1)];
        noise.id_low[l] = (uint32_t)id;
        noise.id_high[l] = (uint32_t)(id >> 32);
    }
    gather(c.x + first * pixels, pixels, count, state);
    for (int64_t t = 0; t < c.n_steps; ++t) {
        if (c.trajectory) scatter(state, pixels, count, c.out + (t * c.batch + first) * pixels);
        noise.step = (uint32_t)t;
        noise.given = c.noise ? c.noise + (t * c.batch + first) * pixels : nullptr;
        autoencoder_body(s, packed, at, part, scratch);
        finish_step(s, packed, at, scratch + part.even, state, step_update(c, t), noise);
    }
    scatter(state, pixels, count, c.out + ((c.trajectory ? c.n_steps * c.batch : 0) + first) * pixels);
}

void autoencoder_group(const AutoencoderShape& s, const float* packed, const float* x, float* out, int64_t first,
                       int64_t count, float* scratch) {
    const PackedLayout<Throughput> at(s);
    const Scratch<Throughput> part(s);
    float* state = scratch + part.state;
    gather(x + first * s.pixels(), s.pixels(), count, state);
    autoencoder_body(s, packed, at, part, scratch);
    finish_step(s, packed, at, scratch + part.even, state, Update{true, 0.0f, 0.0f, 0.0f, 0.0f}, GroupNoise{});
    scatter(state, s.pixels(), count, out + first * s.pixels());
}

// The margins are read beside the even pixels and then not selected: they only have to be initialised.
void clear_margins(const Scratch<Latency>& part, float* scratch) {
    for (int64_t n = 0; n < Scratch<Latency>::margin; ++n) {
        scratch[part.even - Scratch<Latency>::margin + n] = 0.0f;
        scratch[part.sums - Scratch<Latency>::margin + n] = 0.0f;
    }
    for (int64_t n = part.sums - 2 * Scratch<Latency>::margin; n < part.sums; ++n) scratch[n] = 0.0f;
}

void chain_image(const AutoencoderShape& s, const float* packed, const ChainArguments& c, int64_t first, int64_t,
                 float* scratch) {
    const PackedLayout<Latency> at(s);
    const Scratch<Latency> part(s);
    const int64_t pixels = s.pixels();
    float* state = scratch + part.state;
    clear_margins(part, scratch);
    for (int64_t n = 0; n < pixels; ++n) state[n] = c.x[first * pixels + n];
    for (int64_t t = 0; t <= c.n_steps; ++t) {
        if (c.trajectory || t == c.n_steps) {
            float* out = c.out + ((c.trajectory ? t * c.batch : 0) + first) * pixels;
            for (int64_t n = 0; n < pixels; ++n) out[n] = state[n];
        }
        if (t == c.n_steps) break;
        const Update update = step_update(c, t);
        const float* noise = nullptr;
        if (update.noise_scale != 0.0f && c.noise) {
            noise = c.noise + (t * c.batch + first) * pixels;
        } else if (update.noise_scale != 0.0f) {
            standard_normal(c.seed, (uint64_t)c.sample_ids[first], (uint32_t)t, pixels, scratch + part.noise);
            noise = scratch + part.noise;
        }
        autoencoder_body(s, packed, at, part, scratch);
        last_sums(s, packed, at, scratch + part.even, scratch + part.sums);
        finish_step(s, scratch + part.sums, state, update, noise);
    }
}

void autoencoder_image(const AutoencoderShape& s, const float* packed, const float* x, float* out, int64_t first,
                       int64_t, float* scratch) {
    const PackedLayout<Latency> at(s);
    const Scratch<Latency> part(s);
    float* state = scratch + part.state;
    clear_margins(part, scratch);
    for (int64_t n = 0; n < s.pixels(); ++n) state[n] = x[first * s.pixels() + n];
    autoencoder_body(s, packed, at, part, scratch);
    last_sums(s, packed, at, scratch + part.even, scratch + part.sums);
    finish_step(s, scratch + part.sums, state, Update{true, 0.0f, 0.0f, 0.0f, 0.0f}, nullptr);
    for (int64_t n = 0; n < s.pixels(); ++n) out[first * s.pixels() + n] = state[n];
}

template <class Form>
int64_t packed_floats(const AutoencoderShape& s) { return PackedLayout<Form>(s).floats; }

template <class Form>
int64_t scratch_floats(const AutoencoderShape& s) { return Scratch<Form>(s).floats; }

void tanh_of_array(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += LANES) store_some(y + i, tanh(load_some(x + i, n - i)), n - i);
}

}  // namespace

extern const Kernels kernels = {
    FASTMALADE_STRING(FASTMALADE_ISA), LANES, LANES * 0.5,
    {LANES, packed_floats<Throughput>, pack_model<Throughput>, scratch_floats<Throughput>, chain_group, autoencoder_group},
    {1, packed_floats<Latency>, pack_model<Latency>, scratch_floats<Latency>, chain_image, autoencoder_image},
    philox_words, standard_normal, tanh_of_array, langevin_update, multiply_adds,
};

}  // namespace fastmalade::cpu::FASTMALADE_ISA
