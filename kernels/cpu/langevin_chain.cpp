// The operations of one instruction set: compiled once for each, with its flags and FASTMALADE_ISA its name.
// Everything but the table at the end has internal linkage.
#include "cpu/kernels.h"

#include "cpu/ceiling.h"
#include "cpu/convolution.h"
#include "cpu/forms.h"
#include "cpu/langevin_update.h"
#include "cpu/noise.h"
#include "cpu/packed_model.h"
#include "cpu/spectral.h"
#include "cpu/tail.h"

#define FASTMALADE_STRING_OF(name) #name
#define FASTMALADE_STRING(name) FASTMALADE_STRING_OF(name)

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Vectors that hold `channels` channels of one pixel.
template <class Form>
inline int64_t vectors_of(int64_t channels) { return (channels + Form::unit - 1) / Form::unit; }

// Working memory of one call, in floats from its start. `half` serves conv1's output and, once conv2 has read it,
// deconv1's. The margins let a vector begin one float before a row and end a vector's length after it.
template <class Form>
struct Scratch {
    static constexpr int64_t margin = 16;
    // The throughput form's state, deconv1's output and even pixels hold one vector for each pixel, the latency form's
    // one float; conv1 and conv2 write vectors in both.
    static constexpr bool single = Form::unit != 1;
    static constexpr int64_t pixel = single ? 1 : LANES;
    int64_t state, half, quarter, even, sums, noise, spectrum, products, floats;

    explicit Scratch(const AutoencoderShape& s) : floats(0) {
        const int64_t plane = s.height * s.width;
        state = take(s.channels * plane * pixel);
        const int64_t planes = 4 * s.hidden1 * PhasePlanes(s.height / 4, s.width / 4).plane;
        half = take(larger(vectors_of<Form>(s.hidden1) * LANES * plane / 4, single ? planes : 0));
        quarter = take(vectors_of<Form>(s.hidden2) * LANES * plane / 16);
        even = take(s.channels * plane / 4 * pixel);
        sums = take(single ? s.channels * plane : 4 * s.width * LANES);
        noise = take(single ? s.channels * plane : 0);
        const int64_t numbers2 = conv2_plan(s).size * conv2_plan(s).size;
        const int64_t numbers1 = deconv1_plan(s).size * deconv1_plan(s).size;
        const int64_t units1 = vectors_of<Form>(s.hidden1), units2 = vectors_of<Form>(s.hidden2);
        spectrum = take(larger(numbers2 * 4 * units1, numbers1 * units2) * LANES);
        products = take(larger(numbers2 * units2, numbers1 * vectors_of<Form>(4 * s.hidden1)) * LANES);
        floats += margin;
    }

private:
    static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
    int64_t take(int64_t n) {
        const int64_t at = floats + margin;
        floats = (at + n + 15) / 16 * 16;
        return at;
    }
};

// The transposed convolution by direct sums. Position (q, p) of phase (odd row, odd column) is output pixel
// (2q + odd row, 2p + odd column).
template <class Form>
void direct_deconv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const float* quarter,
                    float* half) {
    const int64_t height = s.height / 4, width = s.width / 4;
    const PhasePlanes planes(height, width);
    Convolution deconv1 = {quarter, s.hidden2, height, width, nullptr, packed + at.deconv1_bias, 0, nullptr, s.hidden1,
                           width, 4 * height * width * LANES, 4 * width * LANES, 2 * LANES, false};
    if (Scratch<Form>::single) {
        deconv1.out_unit_stride = planes.plane * LANES;
        deconv1.out_row_stride = planes.row;
        deconv1.out_step = 1;
        deconv1.spread = true;
    }
    for (int64_t q = 0; q < height; ++q) {
        for (int phase = 0; phase < 4; ++phase) {
            deconv1.weights = packed + at.deconv1[phase];
            deconv1.row_taps = 5 - phase / 2;
            deconv1.out = half + (Scratch<Form>::single ? phase * s.hidden1 * planes.plane
                                                        : (phase / 2 * 2 * width + phase % 2) * LANES);
            if (phase % 2 == 0) {
                convolve_row<Form, TransposedEven>(deconv1, q);
            } else {
                convolve_row<Form, TransposedOdd>(deconv1, q);
            }
        }
    }
}

template <class Form>
void deconv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Scratch<Form>& part,
             float* scratch) {
    float* quarter = scratch + part.quarter;
    if (at.deconv1_size == 0) return direct_deconv1(s, packed, at, quarter, scratch + part.half);
    const int64_t height = s.height / 4, width = s.width / 4;
    const SpectralLayer layer = {{quarter}, 1, s.hidden2, vectors_of<Form>(s.hidden2), height * width * LANES,
                                 width * LANES, LANES, height, width, packed + at.deconv1_spectrum,
                                 packed + at.deconv1_bias, 4 * s.hidden1, vectors_of<Form>(4 * s.hidden1),
                                 scratch + part.spectrum, scratch + part.products};
    const PhasedOutput<Form> output = {scratch + part.half, s.hidden1, height, width};
    switch (at.deconv1_size) {
        case 9: return spectral_convolution<Form, 9, 2>(layer, output);
        case 10: return spectral_convolution<Form, 10, 2>(layer, output);
        default: return spectral_convolution<Form, 12, 2>(layer, output);
    }
}

template <class Form>
struct ImageForm { typedef Form type; };
template <>
struct ImageForm<Latency> { typedef LatencyFromImage type; };

template <class Form>
void conv1(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Scratch<Form>& part,
           float* scratch) {
    const int64_t half_h = s.height / 2, half_w = s.width / 2;
    const Convolution layer = {scratch + part.state, s.channels, s.height, s.width, packed + at.conv1,
                               packed + at.conv1_bias, 5, scratch + part.half, s.hidden1, half_w,
                               half_h * half_w * LANES, half_w * LANES, LANES, false};
    for (int64_t q = 0; q < half_h; ++q) convolve_row<typename ImageForm<Form>::type, ConvolutionStride2>(layer, q);
}

template <class Form>
void direct_conv2(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const float* half,
                  float* quarter) {
    const int64_t quarter_h = s.height / 4, quarter_w = s.width / 4;
    const Convolution layer = {half, s.hidden1, s.height / 2, s.width / 2, packed + at.conv2, packed + at.conv2_bias, 5,
                               quarter, s.hidden2, quarter_w, quarter_h * quarter_w * LANES, quarter_w * LANES, LANES,
                               false};
    for (int64_t q = 0; q < quarter_h; ++q) convolve_row<Form, ConvolutionStride2>(layer, q);
}

template <class Form>
void conv2(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at, const Scratch<Form>& part,
           float* scratch) {
    const float* half = scratch + part.half;
    if (at.conv2_size == 0) return direct_conv2(s, packed, at, half, scratch + part.quarter);
    const int64_t row = s.width / 2 * LANES;
    const SpectralLayer layer = {{half, half + LANES, half + row, half + row + LANES}, 4, s.hidden1,
                                 vectors_of<Form>(s.hidden1), s.height / 2 * row, 2 * row, 2 * LANES, s.height / 4,
                                 s.width / 4, packed + at.conv2_spectrum, packed + at.conv2_bias, s.hidden2,
                                 vectors_of<Form>(s.hidden2), scratch + part.spectrum, scratch + part.products};
    const GridOutput output = {scratch + part.quarter, s.height / 4, s.width / 4};
    switch (at.conv2_size) {
        case 8: return spectral_convolution<Form, 8, 1>(layer, output);
        case 9: return spectral_convolution<Form, 9, 1>(layer, output);
        default: return spectral_convolution<Form, 12, 1>(layer, output);
    }
}

// state -> the even pixels of the last transposed convolution.
template <class Form>
void autoencoder_body(const AutoencoderShape& s, const float* packed, const PackedLayout<Form>& at,
                      const Scratch<Form>& part, float* scratch) {
    conv1(s, packed, at, part, scratch);
    conv2(s, packed, at, part, scratch);
    deconv1(s, packed, at, part, scratch);
    even_pixels(s, packed, at, scratch + part.half, scratch + part.even);
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
        finish_step(s, packed, at, scratch + part.even, state, step_update(c, t), noise, scratch + part.sums);
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
    finish_step(s, packed, at, scratch + part.even, state, Update{true, 0.0f, 0.0f, 0.0f, 0.0f}, GroupNoise{},
                scratch + part.sums);
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

void run_stage(const AutoencoderShape& s, const PackedLayout<Throughput>& at, const Scratch<Throughput>& part,
               const float* packed, float* scratch) {
    GroupNoise noise = {};
    noise.count = LANES;
    finish_step(s, packed, at, scratch + part.even, scratch + part.state, Update{false, 0.3f, 0.03f, -1.0f, 2.0f}, noise,
                scratch + part.sums);
}

void run_stage(const AutoencoderShape& s, const PackedLayout<Latency>& at, const Scratch<Latency>& part,
               const float* packed, float* scratch) {
    clear_margins(part, scratch);
    standard_normal(0, 0, 0, s.pixels(), scratch + part.noise);
    last_sums(s, packed, at, scratch + part.even, scratch + part.sums);
    finish_step(s, scratch + part.sums, scratch + part.state, Update{false, 0.3f, 0.03f, -1.0f, 2.0f},
                scratch + part.noise);
}

template <class Form>
void run_stage(const AutoencoderShape& s, const float* packed, int stage, float* scratch) {
    const PackedLayout<Form> at(s);
    const Scratch<Form> part(s);
    switch (stage) {
        case 0: return conv1(s, packed, at, part, scratch);
        case 1: return conv2(s, packed, at, part, scratch);
        case 2: return deconv1(s, packed, at, part, scratch);
        case 3: return even_pixels(s, packed, at, scratch + part.half, scratch + part.even);
        default: return run_stage(s, at, part, packed, scratch);
    }
}

int64_t packing(const AutoencoderShape& s) { return conv2_plan(s).size * 100 + deconv1_plan(s).size; }

template <class Form>
int64_t packed_floats(const AutoencoderShape& s) { return PackedLayout<Form>(s).floats; }

template <class Form>
int64_t scratch_floats(const AutoencoderShape& s) { return Scratch<Form>(s).floats; }

void tanh_of_array(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += LANES) store_some(y + i, tanh(load_some(x + i, n - i)), n - i);
}

}  // namespace

extern const Kernels kernels = {
    FASTMALADE_STRING(FASTMALADE_ISA), LANES, LANES * 0.6, packing,
    {LANES, packed_floats<Throughput>, pack_model<Throughput>, scratch_floats<Throughput>, chain_group,
     run_stage<Throughput>, autoencoder_group},
    {1, packed_floats<Latency>, pack_model<Latency>, scratch_floats<Latency>, chain_image, run_stage<Latency>,
     autoencoder_image},
    philox_words, standard_normal, tanh_of_array, langevin_update, multiply_adds,
};

}  // namespace fastmalade::cpu::FASTMALADE_ISA
