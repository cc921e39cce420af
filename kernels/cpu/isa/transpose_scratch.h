// Where a gradient keeps what it needs: the working memory of the transposes, and the record of one step.
#pragma once

#include "cpu/isa/stages.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// What the transposes write between the record of a step and the gradient. Only `cotangent` is kept for the next step.
// Where two layouts are named, the second is that of the planar forms, for each of their images.
template <class Form>
struct TransposeScratch : Places {
    static constexpr bool planar = Form::planar;
    static constexpr int64_t images = Form::images;
    int64_t cotangent;  // as the state
    int64_t inner;      // gradient before the last tanh: [C][H][W][kLanes], or [C][H] SplitRow
    int64_t even;       // ... before deconv2's: [C][H/2][W/2][kLanes], or 4 PhasePlanes for each channel
    int64_t half;       // ... before deconv1's: [hidden1][H/2][W/2][kLanes], or units of 4 hidden1 channels at H/4, W/4
    int64_t quarter;    // ... before conv2's: [vector of hidden2][H/4][W/4][kLanes]
    int64_t first;      // ... before conv1's: [hidden1][H/2][W/2][kLanes], or PhasePlanes
    int64_t back;       // planar forms: gradient through r with respect to one image, [C][H][W]
    int64_t spectrum, products;

    explicit TransposeScratch(const AutoencoderShape& s);
};

// A row of a planar form, its even columns first and then its odd ones, so that neighbours of equal parity share a
// vector.
struct SplitRow {
    int64_t part, floats;
    explicit SplitRow(int64_t width) : part(width / 2 + kLanes), floats(2 * part) {}
};

template <class Form>
TransposeScratch<Form>::TransposeScratch(const AutoencoderShape& s) {
    const int64_t plane = s.height * s.width, planes = PhasePlanes(s.height / 4, s.width / 4).plane;
    const int64_t all_phases = vectors_of<Form>(4 * s.hidden1), units2 = vectors_of<Form>(s.hidden2);
    cotangent = take(s.channels * plane * images);
    inner = take(s.channels * (planar ? images * s.height * SplitRow(s.width).floats : plane * kLanes));
    even = take(s.channels * (planar ? images * 4 * planes : plane / 4 * kLanes));
    half = take(all_phases * plane / 16 * kLanes);
    quarter = take(units2 * plane / 16 * kLanes);
    first = take(planar ? images * 4 * s.hidden1 * planes : s.hidden1 * plane / 4 * kLanes);
    back = take(planar ? s.channels * plane : 0);
    const int64_t size1 = deconv1_transpose_transform(s).size, size2 = conv2_transpose_transform(s).size;
    spectrum = take(larger(size1 * size1 * all_phases, size2 * size2 * units2) * kLanes);
    products = take(larger(size1 * size1 * units2, size2 * size2 * all_phases) * kLanes);
}

// Activations of one step, in floats from the start of the memory that holds them.
template <class Form>
struct Record : Places {
    static constexpr int64_t images = Form::images;
    int64_t half;       // conv1's: [hidden1][H/2][W/2][kLanes], or PhasePlanes for each image
    int64_t quarter;    // conv2's: [vector of hidden2][H/4][W/4][kLanes]
    int64_t upsampled;  // deconv1's: as `half`
    int64_t even, reconstruction, within_bounds;

    explicit Record(const AutoencoderShape& s) {
        const int64_t plane = s.height * s.width, planes = PhasePlanes(s.height / 4, s.width / 4).plane;
        const int64_t half_floats = Form::planar ? images * 4 * s.hidden1 * planes : s.hidden1 * plane / 4 * kLanes;
        half = take(half_floats);
        quarter = take(vectors_of<Form>(s.hidden2) * plane / 16 * kLanes);
        upsampled = take(half_floats);
        even = take(s.channels * plane / 4 * images);
        reconstruction = take(s.channels * plane * images);
        within_bounds = take(s.channels * plane * images);
    }
};

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
