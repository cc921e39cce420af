// What the weights' gradient reads of one step, image by image and in the same order in every form: vectors of channels
// at each position, or planes with one float a pixel.
#pragma once

#include "cpu/isa/stages.h"
#include "cpu/isa/transpose_scratch.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Where the throughput form has pixel (channel, row, column) of all images: [channel][row][column][kLanes].
struct ImagesInLanes {
    const float* pixels;
};

// Where a planar form has it, for one image. Each returns the pixel at a channel, row and column.
struct PlainImage {  // [channel][row][column]
    const float* pixels;
    int64_t rows, columns;
    float operator()(int64_t c, int64_t y, int64_t x) const { return pixels[(c * rows + y) * columns + x]; }
};
struct SplitImage {  // [channel][row] SplitRow
    const float* pixels;
    int64_t rows;
    SplitRow split;
    float operator()(int64_t c, int64_t y, int64_t x) const {
        return pixels[(c * rows + y) * split.floats + x % 2 * split.part + x / 2];
    }
};
struct PhaseImage {  // PhasePlanes: `channel_planes` lie between channels of one phase, `phase_planes` between phases
    const float* pixels;
    PhasePlanes planes;
    int64_t channel_planes, phase_planes;
    float operator()(int64_t c, int64_t y, int64_t x) const {
        const int64_t plane = c * channel_planes + (y % 2 * 2 + x % 2) * phase_planes;
        return pixels[plane * planes.plane + y / 2 * planes.row + x / 2];
    }
};
template <class Form>
struct VectorImage {  // [vector of channels][row][column][kLanes]
    const float* pixels;
    int64_t rows, columns, image;
    float operator()(int64_t c, int64_t y, int64_t x) const {
        const int64_t vector = (c / Form::unit * rows + y) * columns + x;
        return pixels[vector * kLanes + image * Form::unit + c % Form::unit];
    }
};
template <class Form>
struct PhaseVectorImage {  // the same at half the size, the phases counted as channels
    VectorImage<Form> phases;
    int64_t channels;
    float operator()(int64_t c, int64_t y, int64_t x) const {
        return phases((y % 2 * 2 + x % 2) * channels + c, y / 2, x / 2);
    }
};

// Size of an operand, and where it goes: `image_stride` floats lie between images, kLanes of them behind each one.
struct Operand {
    int64_t channels, rows, columns, images;  // images: how many are wanted
    float* to;
    int64_t image_stride;
};

inline int64_t whole_vectors(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// to: [row][column][whole_vectors(channels)], zero beyond the last channel. view(image): one of the structures above.
template <class View>
void gather_vectors(View view, const Operand& o) {
    const int64_t width = whole_vectors(o.channels);
    for (int64_t image = 0; image < o.images; ++image) {
        const auto pixel = view(image);
        float* to = o.to + image * o.image_stride;
        for (int64_t y = 0; y < o.rows; ++y) {
            for (int64_t x = 0; x < o.columns; ++x, to += width) {
                for (int64_t c = 0; c < o.channels; ++c) to[c] = pixel(c, y, x);
                for (int64_t c = o.channels; c < width; ++c) to[c] = 0.0f;
            }
        }
    }
}

inline void gather_vectors(ImagesInLanes lanes, const Operand& o) {
    const int64_t width = whole_vectors(o.channels), positions = o.rows * o.columns;
    for (int64_t first = 0; first < width; first += kLanes) {
        for (int64_t n = 0; n < positions; ++n) {
            Vec square[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) {
                const int64_t channel = first + l;
                square[l] = channel < o.channels ? load(lanes.pixels + (channel * positions + n) * kLanes) : Vec{};
            }
            transpose(square);
            float* to = o.to + n * width + first;
            for (int64_t image = 0; image < o.images; ++image) store(to + image * o.image_stride, square[image]);
        }
    }
}

// to: [channel][row + 2 border rows][column + 2 border columns], zero on the border.
struct Border {
    int64_t rows, columns;
};

inline void clear_image(const Operand& o, const Border& border, float* to) {
    if (border.rows == 0 && border.columns == 0) return;
    const int64_t floats = o.channels * (o.rows + 2 * border.rows) * (o.columns + 2 * border.columns);
    for (int64_t n = 0; n < floats; ++n) to[n] = 0.0f;
}

template <class View>
void gather_planes(View view, const Operand& o, const Border& border) {
    const int64_t row_floats = o.columns + 2 * border.columns;
    for (int64_t image = 0; image < o.images; ++image) {
        const auto pixel = view(image);
        float* to = o.to + image * o.image_stride;
        clear_image(o, border, to);
        for (int64_t c = 0; c < o.channels; ++c) {
            for (int64_t y = 0; y < o.rows; ++y) {
                float* row = to + (c * (o.rows + 2 * border.rows) + y + border.rows) * row_floats + border.columns;
                for (int64_t x = 0; x < o.columns; ++x) row[x] = pixel(c, y, x);
            }
        }
    }
}

inline void gather_planes(ImagesInLanes lanes, const Operand& o, const Border& border) {
    const int64_t row_floats = o.columns + 2 * border.columns;
    for (int64_t image = 0; image < o.images; ++image) clear_image(o, border, o.to + image * o.image_stride);
    for (int64_t c = 0; c < o.channels; ++c) {
        for (int64_t y = 0; y < o.rows; ++y) {
            const float* from = lanes.pixels + (c * o.rows + y) * o.columns * kLanes;
            float* row = o.to + (c * (o.rows + 2 * border.rows) + y + border.rows) * row_floats + border.columns;
            for (int64_t x = 0; x < o.columns; x += kLanes) {
                const int64_t left = o.columns - x;
                Vec square[kLanes];
                for (int64_t l = 0; l < kLanes; ++l) square[l] = l < left ? load(from + (x + l) * kLanes) : Vec{};
                transpose(square);
                // Whole vectors: what lies beyond the row is zero, as its border, or is written after it.
                for (int64_t image = 0; image < o.images; ++image)
                    store(row + image * o.image_stride + x, square[image]);
            }
        }
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
