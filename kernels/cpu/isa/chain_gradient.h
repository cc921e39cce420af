// The chain's vector-Jacobian product: steps are run again and recorded, then taken back one by one. Which states are
// kept and which run again is the caller's program (GradientAction); every program gives the same bits, because a step
// that is run again is the same step.
#pragma once

#include "cpu/isa/images.h"
#include "cpu/isa/transposes.h"
#include "cpu/isa/weight_gradient.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Working memory of a gradient: the forward pass's, the transposes', then checkpoints and records, and for the weights
// the operands of a layer. A record is the activations of a step, and for the weights the state before it.
template <class Form>
struct GradientScratch {
    ForwardScratch<Form> forward;
    TransposeScratch<Form> transposes;
    Record<Form> record;
    int64_t state_floats, operands, checkpoints, records;  // where the last three begin

    GradientScratch(const AutoencoderShape& s, int64_t kept_states, bool weights)
        : forward(s), transposes(s), record(s), state_floats((s.pixels() * Form::images + 15) / 16 * 16) {
        operands = forward.floats + transposes.floats;
        checkpoints = operands + (weights ? WeightScratch(s, Form::images).floats : 0);
        records = checkpoints + kept_states * state_floats;
    }
};

template <class Form>
GradientMemory gradient_memory(const AutoencoderShape& s, bool weights) {
    const GradientScratch<Form> part(s, 0, weights);
    return GradientMemory{part.records, part.state_floats, part.record.floats + (weights ? part.state_floats : 0)};
}

// One group of images, forward and back. Records are given by address: they lie in the scratch memory or elsewhere.
template <class Form>
class Gradient {
public:
    // weight_sums: (count, weight_sum_floats), to which the steps' shares are added, or null
    Gradient(const AutoencoderShape& s, const float* packed, const float* transposes, int64_t first, int64_t count,
             int64_t kept_states, float* scratch, float* weight_sums)
        : s_(s),
          transposes_(transposes),
          layout_(s),
          part_(s, kept_states, weight_sums != nullptr),
          images_(s, packed, first, count, scratch),
          scratch_(scratch),
          weight_sums_(weight_sums) {}

    const Images<Form>& images() const { return images_; }
    float* state() const { return scratch_ + part_.forward.state; }
    float* cotangent() const { return transpose_scratch() + part_.transposes.cotangent; }
    float* checkpoint(int64_t n) const { return scratch_ + part_.checkpoints + n * part_.state_floats; }
    float* record(int64_t n) const {
        return scratch_ + part_.records + n * (record_floats() + (weight_sums_ ? part_.state_floats : 0));
    }
    const float* reconstruction(const float* record) const { return record + part_.record.reconstruction; }
    int64_t state_floats() const { return s_.pixels() * Form::images; }
    int64_t record_floats() const { return part_.record.floats; }

    void copy_state(const float* from, float* to) const {
        for (int64_t n = 0; n < state_floats(); ++n) to[n] = from[n];
    }

    void advance(const ChainArguments& c, int64_t t) const {
        images_.template step<false>(c, t, part_.forward, part_.forward.activations(scratch_), KeptEnd{});
    }

    void record_step(const ChainArguments& c, int64_t t, float* record) const {
        clear_margins(record);
        if (weight_sums_) copy_state(state(), record + record_floats());
        images_.template step<true>(c, t, part_.forward, activations(record), kept_end(record));
        if constexpr (Form::planar) keep_planes(record);
    }

    void record_reconstruction(float* record) const {
        clear_margins(record);
        images_.template apply_autoencoder<true>(part_.forward, activations(record), kept_end(record));
        if constexpr (Form::planar) keep_planes(record);
    }

    void reverse(const Back& back, const float* record) const {
        step_transpose(s_, transposes_, layout_, back, part_.record, record, part_.transposes, transpose_scratch());
    }

    void reverse_step(const ChainArguments& c, int64_t t, const float* record) const {
        const float a = c.step_sizes[t], unbounded = __builtin_inff();
        reverse(Back{a, 1.0f - a, c.lows[t] > -unbounded || c.highs[t] < unbounded}, record);
        if (weight_sums_) {
            const WeightStep<Form> step(s_, images_.count, scratch_ + part_.operands, weight_sums_);
            step.add(record + record_floats(), part_.record, record, part_.transposes, transpose_scratch());
        }
    }

private:
    float* transpose_scratch() const { return scratch_ + part_.forward.floats; }

    // In the planar forms conv1 writes vectors of channels, which keep_planes turns into the record's planes.
    Activations activations(float* record) const {
        return Activations{Form::planar ? scratch_ + part_.forward.half : record + part_.record.half,
                           record + part_.record.quarter, record + part_.record.upsampled, record + part_.record.even};
    }

    KeptEnd kept_end(float* record) const {
        return KeptEnd{record + part_.record.reconstruction, record + part_.record.within_bounds};
    }

    // The planar forms read beside the even pixels, as Images says.
    void clear_margins(float* record) const {
        float* even = record + part_.record.even;
        float* end = record + part_.record.reconstruction - Places::kMargin;
        for (int64_t n = 0; n < Places::kMargin; ++n) even[n - Places::kMargin] = end[n] = 0.0f;
    }

    // conv1's output, [unit of hidden1][H/2][W/2][kLanes], as the PhasePlanes that the transposes read.
    void keep_planes(float* record) const {
        const int64_t height = s_.height / 4, width = s_.width / 4;
        const PhasePlanes planes(height, width);
        const float* half = scratch_ + part_.forward.half;
        for (int64_t unit = 0; unit < vectors_of<Form>(s_.hidden1); ++unit) {
            const int64_t left = s_.hidden1 - unit * Form::unit, count = left < Form::unit ? left : Form::unit;
            for (int64_t row = 0; row < 2 * height; ++row) {
                for (int64_t parity = 0; parity < 2; ++parity) {
                    const int64_t channel = (row % 2 * 2 + parity) * s_.hidden1 + unit * Form::unit;
                    float* to = record + part_.record.half + channel * planes.plane + row / 2 * planes.row;
                    const float* from = half + ((unit * 2 * height + row) * 2 * width + parity) * kLanes;
                    for (int64_t p = 0; p < width; p += kLanes) {
                        Vec square[kLanes];
                        for (int64_t l = 0; l < kLanes; ++l) {
                            square[l] = p + l < width ? load(from + 2 * (p + l) * kLanes) : Vec{};
                        }
                        transpose(square);
                        for (int image = 0; image < Form::images; ++image) {
                            float* plane = to + image * planes.image(s_.hidden1) + p;
                            for (int64_t c = 0; c < count; ++c) {
                                store(plane + c * planes.plane, square[image * Form::unit + c]);
                            }
                        }
                    }
                }
            }
        }
    }

    const AutoencoderShape& s_;
    const float* transposes_;
    const TransposeLayout<Form> layout_;
    const GradientScratch<Form> part_;
    const Images<Form> images_;
    float* scratch_;
    float* weight_sums_;
};

template <class Form>
void chain_gradient(const AutoencoderShape& s, const float* packed, const float* transposes, const ChainArguments& c,
                    const GradientArguments& g, int64_t first, int64_t count, float* scratch, float* weight_sums) {
    const Gradient<Form> group(s, packed, transposes, first, count, g.checkpoints, scratch, weight_sums);
    for (int64_t n = 0; weight_sums && n < count * weight_sum_floats(s); ++n) weight_sums[n] = 0.0f;
    group.images().read(g.cotangent, group.cotangent());
    for (int64_t n = 0; n < g.n_actions; ++n) {
        const GradientAction& action = g.actions[n];
        switch (action.kind) {
            case GradientAction::load:
                if (action.which == 0) {
                    group.images().read(c.x, group.state());
                } else {
                    group.copy_state(group.checkpoint(action.which - 1), group.state());
                }
                break;
            case GradientAction::save: group.copy_state(group.state(), group.checkpoint(action.which - 1)); break;
            case GradientAction::advance:
                for (int64_t k = 0; k < action.which; ++k) group.advance(c, action.step + k);
                break;
            case GradientAction::record:
                for (int64_t k = 0; k < action.which; ++k) group.record_step(c, action.step + k, group.record(k));
                break;
            default:
                for (int64_t k = action.which - 1; k >= 0; --k) group.reverse_step(c, action.step + k, group.record(k));
        }
    }
    group.images().write(group.cotangent(), g.gradient);
}

// The chain with every step recorded, records: (N, record); out as ChainArguments says, no trajectory.
template <class Form>
void recorded_chain(const AutoencoderShape& s, const float* packed, const ChainArguments& c, int64_t first,
                    int64_t count, float* scratch, float* records) {
    const Gradient<Form> group(s, packed, nullptr, first, count, 0, scratch, nullptr);
    group.images().read(c.x, group.state());
    for (int64_t t = 0; t < c.n_steps; ++t) group.record_step(c, t, records + t * group.record_floats());
    group.images().write(group.state(), c.out);
}

// The gradient from those records.
template <class Form>
void chain_reverse(const AutoencoderShape& s, const float* transposes, const ChainArguments& c, const float* cotangent,
                   float* gradient, int64_t first, int64_t count, float* scratch, const float* records) {
    const Gradient<Form> group(s, nullptr, transposes, first, count, 0, scratch, nullptr);
    group.images().read(cotangent, group.cotangent());
    for (int64_t t = c.n_steps - 1; t >= 0; --t) group.reverse_step(c, t, records + t * group.record_floats());
    group.images().write(group.cotangent(), gradient);
}

template <class Form>
void autoencoder_gradient(const AutoencoderShape& s, const float* packed, const float* transposes,
                          const JacobianArguments& j, int64_t first, int64_t count, float* scratch) {
    const Gradient<Form> group(s, packed, transposes, first, count, 0, scratch, nullptr);
    float* record = group.record(0);
    group.images().read(j.x, group.state());
    group.record_reconstruction(record);
    group.images().read(j.cotangent ? j.cotangent : j.x, group.cotangent());
    if (!j.cotangent) {
        float* g = group.cotangent();
        const float* r = group.reconstruction(record);
        for (int64_t n = 0; n < group.state_floats(); ++n) g[n] = 2.0f * (g[n] - r[n]);
    }
    group.reverse(Back{j.scale, j.own, false}, record);
    group.images().write(group.cotangent(), j.out);
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
