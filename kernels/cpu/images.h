// The images of one kernel call and what is done with them: a group in the lanes (throughput) or one image (latency).
#pragma once

#include "cpu/stages.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

template <class Form>
struct Images;

inline Update step_update(const ChainArguments& c, int64_t t) {
    return Update{false, c.step_sizes[t], c.noise_scales[t], c.lows[t], c.highs[t]};
}

constexpr Update reconstruction_only = {true, 0.0f, 0.0f, 0.0f, 0.0f};

template <>
struct Images<Throughput> {
    const AutoencoderShape& s;
    const float* packed;
    PackedLayout<Throughput> at;
    int64_t first, count;  // which of the batch
    float* scratch;

    Images(const AutoencoderShape& shape, const float* packed_model, int64_t first_image, int64_t images, float* memory)
        : s(shape), packed(packed_model), at(shape), first(first_image), count(images), scratch(memory) {}

    // batch: (B, pixels) -> state [pixels][LANES]; lanes beyond the last image repeat it, so that they hold nothing odd.
    void read(const float* batch, float* state) const {
        const float* images = batch + first * s.pixels();
        for (int64_t n = 0; n < s.pixels(); ++n) {
            for (int l = 0; l < LANES; ++l) state[n * LANES + l] = images[(l < count ? l : count - 1) * s.pixels() + n];
        }
    }

    void write(const float* state, float* batch) const {
        float* images = batch + first * s.pixels();
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t n = 0; n < s.pixels(); ++n) images[l * s.pixels() + n] = state[n * LANES + l];
        }
    }

    // Step t of the chain on the state.
    template <bool KEEP>
    void step(const ChainArguments& c, int64_t t, const Scratch<Throughput>& part, const Activations& to,
              const KeptEnd& kept) const {
        GroupNoise noise = {};
        noise.pixels = s.pixels();
        noise.count = count;
        noise.seed = c.seed;
        noise.step = (uint32_t)t;
        noise.given = c.noise ? c.noise + (t * c.batch + first) * s.pixels() : nullptr;
        for (int l = 0; l < LANES; ++l) {
            const uint64_t id = (uint64_t)c.sample_ids[first + (l < count ? l : count - 1)];
            noise.id_low[l] = (uint32_t)id;
            noise.id_high[l] = (uint32_t)(id >> 32);
        }
        autoencoder_body(s, packed, at, to, part, scratch);
        finish_step<KEEP>(s, packed, at, to.even, scratch + part.state, step_update(c, t), noise,
                          scratch + part.sums, kept);
    }

    // state <- r(state)
    template <bool KEEP>
    void reconstruct(const Scratch<Throughput>& part, const Activations& to,
              const KeptEnd& kept) const {
        autoencoder_body(s, packed, at, to, part, scratch);
        finish_step<KEEP>(s, packed, at, to.even, scratch + part.state, reconstruction_only, GroupNoise{},
                          scratch + part.sums, kept);
    }
};

template <>
struct Images<Latency> {
    const AutoencoderShape& s;
    const float* packed;
    PackedLayout<Latency> at;
    int64_t first;
    float* scratch;

    Images(const AutoencoderShape& shape, const float* packed_model, int64_t image, int64_t, float* memory)
        : s(shape), packed(packed_model), at(shape), first(image), scratch(memory) {
        clear_margins(Scratch<Latency>(s), scratch);
    }

    void read(const float* batch, float* state) const {
        for (int64_t n = 0; n < s.pixels(); ++n) state[n] = batch[first * s.pixels() + n];
    }

    void write(const float* state, float* batch) const {
        for (int64_t n = 0; n < s.pixels(); ++n) batch[first * s.pixels() + n] = state[n];
    }

    template <bool KEEP>
    void step(const ChainArguments& c, int64_t t, const Scratch<Latency>& part, const Activations& to,
              const KeptEnd& kept) const {
        const Update update = step_update(c, t);
        const float* noise = nullptr;
        if (update.noise_scale != 0.0f && c.noise) {
            noise = c.noise + (t * c.batch + first) * s.pixels();
        } else if (update.noise_scale != 0.0f) {
            standard_normal(c.seed, (uint64_t)c.sample_ids[first], (uint32_t)t, s.pixels(), scratch + part.noise);
            noise = scratch + part.noise;
        }
        finish<KEEP>(part, to, update, noise, kept);
    }

    template <bool KEEP>
    void reconstruct(const Scratch<Latency>& part, const Activations& to,
              const KeptEnd& kept) const {
        finish<KEEP>(part, to, reconstruction_only, nullptr, kept);
    }

private:
    template <bool KEEP>
    void finish(const Scratch<Latency>& part, const Activations& to, const Update& update, const float* noise,
                const KeptEnd& kept) const {
        autoencoder_body(s, packed, at, to, part, scratch);
        last_sums(s, packed, at, to.even, scratch + part.sums);
        finish_step<KEEP>(s, scratch + part.sums, scratch + part.state, update, noise, kept);
    }

    // The margins are read beside the even pixels and then not selected: they only have to be initialised.
    static void clear_margins(const Scratch<Latency>& part, float* scratch) {
        for (int64_t n = 0; n < Scratch<Latency>::margin; ++n) {
            scratch[part.even - Scratch<Latency>::margin + n] = 0.0f;
            scratch[part.sums - Scratch<Latency>::margin + n] = 0.0f;
        }
        for (int64_t n = part.sums - 2 * Scratch<Latency>::margin; n < part.sums; ++n) scratch[n] = 0.0f;
    }
};

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
