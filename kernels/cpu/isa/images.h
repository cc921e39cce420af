// The images of one kernel call and a step of the chain on them: one image in every lane (throughput), or a few images
// one after the other (planar).
#pragma once

#include "cpu/isa/stages.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

inline Update step_update(const ChainArguments& c, int64_t t) {
    Update update;
    update.step_size = c.step_sizes[t];
    update.noise_scale = c.noise_scales[t];
    update.low = c.lows[t];
    update.high = c.highs[t];
    return update;
}

constexpr Update kReconstructOnly = {true};

// The planar forms. A group that is not full repeats its last image, so that all its numbers are ordinary ones.
template <class Form>
struct Images {
    const AutoencoderShape& s;
    const float* packed;
    PackedLayout<Form> at;
    int64_t first, count;  // which of the batch
    float* scratch;

    Images(const AutoencoderShape& shape, const float* packed_model, int64_t first_image, int64_t images, float* memory)
        : s(shape), packed(packed_model), at(shape), first(first_image), count(images), scratch(memory) {
        clear_margins(ForwardScratch<Form>(s), scratch);
    }

    // batch: (B, pixels), state: (images, pixels)
    void read(const float* batch, float* state) const {
        for (int64_t i = 0; i < Form::images; ++i) {
            const float* from = batch + of_batch(i) * s.pixels();
            for (int64_t n = 0; n < s.pixels(); ++n) state[i * s.pixels() + n] = from[n];
        }
    }

    void write(const float* state, float* batch) const {
        for (int64_t n = 0; n < count * s.pixels(); ++n) batch[first * s.pixels() + n] = state[n];
    }

    template <bool KEEP>
    void step(const ChainArguments& c, int64_t t, const ForwardScratch<Form>& part, const Activations& to,
              const KeptEnd& kept) const {
        const Update update = step_update(c, t);
        finish<KEEP>(part, to, update, kept, [&](int64_t i) -> const float* {
            if (update.noise_scale == 0.0f) return nullptr;
            if (c.noise) return c.noise + (t * c.batch + of_batch(i)) * s.pixels();
            standard_normal(c.seed, (uint64_t)c.sample_ids[of_batch(i)], (uint32_t)t, s.pixels(), scratch + part.noise);
            return scratch + part.noise;
        });
    }

    template <bool KEEP>
    void apply_autoencoder(const ForwardScratch<Form>& part, const Activations& to, const KeptEnd& kept) const {
        finish<KEEP>(part, to, kReconstructOnly, kept, [](int64_t) -> const float* { return nullptr; });
    }

private:
    int64_t of_batch(int64_t i) const { return first + (i < count ? i : count - 1); }

    template <bool KEEP, class Noise>
    void finish(const ForwardScratch<Form>& part, const Activations& to, const Update& update, const KeptEnd& kept,
                Noise noise) const {
        autoencoder_body(s, packed, at, to, part, scratch);
        for (int64_t i = 0; i < Form::images; ++i) {
            const int64_t image = i * s.pixels();
            last_sums(s, packed, at, to.even + image / 4, scratch + part.sums);
            const KeptEnd kept_image = {KEEP ? kept.reconstruction + image : nullptr,
                                        KEEP ? kept.within_bounds + image : nullptr};
            finish_step<KEEP>(s, scratch + part.sums, scratch + part.state + image, update, noise(i), kept_image);
        }
    }

    // The margins beside the even pixels and beside the columns of conv1 are read but not selected: they only have to
    // be initialised. The channels that conv1's last vector has beyond the layer's are zero.
    static void clear_margins(const ForwardScratch<Form>& part, float* scratch) {
        constexpr int64_t margin = ForwardScratch<Form>::kMargin;
        for (int64_t n = 0; n < margin; ++n) scratch[part.even - margin + n] = scratch[part.sums - margin + n] = 0.0f;
        for (int64_t n = part.sums - 2 * margin; n < part.sums; ++n) scratch[n] = 0.0f;
        if (Form::images > 1) return;
        for (int64_t n = part.spread - margin; n < part.half; ++n) scratch[n] = 0.0f;
    }
};

template <>
struct Images<Throughput> {
    const AutoencoderShape& s;
    const float* packed;
    PackedLayout<Throughput> at;
    int64_t first, count;  // which of the batch
    float* scratch;

    Images(const AutoencoderShape& shape, const float* packed_model, int64_t first_image, int64_t images, float* memory)
        : s(shape), packed(packed_model), at(shape), first(first_image), count(images), scratch(memory) {}

    // batch: (B, pixels) -> state [pixels][kLanes]; lanes beyond the last image repeat it, as in the planar forms.
    void read(const float* batch, float* state) const {
        const float* images = batch + first * s.pixels();
        for (int64_t n = 0; n < s.pixels(); ++n) {
            for (int l = 0; l < kLanes; ++l)
                state[n * kLanes + l] = images[(l < count ? l : count - 1) * s.pixels() + n];
        }
    }

    void write(const float* state, float* batch) const {
        float* images = batch + first * s.pixels();
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t n = 0; n < s.pixels(); ++n) images[l * s.pixels() + n] = state[n * kLanes + l];
        }
    }

    // Step t of the chain on the state.
    template <bool KEEP>
    void step(const ChainArguments& c, int64_t t, const ForwardScratch<Throughput>& part, const Activations& to,
              const KeptEnd& kept) const {
        GroupNoise noise = {};
        noise.pixels = s.pixels();
        noise.count = count;
        noise.keys = PhiloxKeys::of(c.seed);
        noise.step = (uint32_t)t;
        noise.given = c.noise ? c.noise + (t * c.batch + first) * s.pixels() : nullptr;
        for (int l = 0; l < kLanes; ++l) {
            const uint64_t id = (uint64_t)c.sample_ids[first + (l < count ? l : count - 1)];
            noise.id_low[l] = (uint32_t)id;
            noise.id_high[l] = (uint32_t)(id >> 32);
        }
        autoencoder_body(s, packed, at, to, part, scratch);
        finish_step<KEEP>(s, packed, at, to.even, scratch + part.state, step_update(c, t), noise, scratch + part.sums,
                          kept);
    }

    // state <- r(state)
    template <bool KEEP>
    void apply_autoencoder(const ForwardScratch<Throughput>& part, const Activations& to, const KeptEnd& kept) const {
        autoencoder_body(s, packed, at, to, part, scratch);
        finish_step<KEEP>(s, packed, at, to.even, scratch + part.state, kReconstructOnly, GroupNoise{},
                          scratch + part.sums, kept);
    }
};

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
