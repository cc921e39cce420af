// conv1's transpose, the last of a step: from the half-size planes to the image, to which the step's own gradient is
// added.
#pragma once

#include "cpu/isa/stages.h"
#include "cpu/isa/transpose_scratch.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// Whether a column beside a vector's or tile's own is missing: for all of it, or lane by lane.
template <bool MISSING>
struct WholeBorder {
    inline __attribute__((always_inline)) Vec choose(Vec without, Vec with) const { return MISSING ? without : with; }
};
struct LaneBorder {
    VecInt missing;
    inline __attribute__((always_inline)) Vec choose(Vec without, Vec with) const {
        return select(missing, without, with);
    }
};

// conv1 seen from the image: columns 4b .. 4b+3 of one image row receive from columns 2b-1 .. 2b+2 of one half-size
// row. half: those four; w: the five taps of one ky.
template <class LeftBorder, class RightBorder>
FASTMALADE_INLINE void add_half_row(Vec sum[4], const Vec half[4], const float* w, LeftBorder left, RightBorder right) {
    sum[0] = fma(broadcast(w[0]), half[2], sum[0]);
    sum[1] = fma(broadcast(w[1]), half[2], sum[1]);
    sum[2] = right.choose(sum[2], fma(broadcast(w[0]), half[3], sum[2]));
    sum[3] = right.choose(sum[3], fma(broadcast(w[1]), half[3], sum[3]));
    sum[0] = fma(broadcast(w[2]), half[1], sum[0]);
    sum[1] = fma(broadcast(w[3]), half[1], sum[1]);
    sum[2] = fma(broadcast(w[2]), half[2], sum[2]);
    sum[3] = fma(broadcast(w[3]), half[2], sum[3]);
    sum[0] = left.choose(sum[0], fma(broadcast(w[4]), half[0], sum[0]));
    sum[2] = fma(broadcast(w[4]), half[1], sum[2]);
}

// Image rows 2h (upper) and 2h+1 (lower), which receive from half-size rows h+1, h and, the upper one, h-1.
// load_row(o, row, half) gives the four columns of channel o.
template <class LoadRow, class LeftBorder, class RightBorder>
FASTMALADE_INLINE void add_half_rows(Vec upper[4], Vec lower[4], const AutoencoderShape& s, int64_t h, const float* w,
                                     LoadRow load_row, LeftBorder left, RightBorder right) {
    for (int64_t o = 0; o < s.hidden1; ++o, w += 25) {
        Vec half[4];
        if (h + 1 < s.height / 2) {
            load_row(o, h + 1, half);
            add_half_row(upper, half, w, left, right);
            add_half_row(lower, half, w + 5, left, right);
        }
        load_row(o, h, half);
        add_half_row(upper, half, w + 10, left, right);
        add_half_row(lower, half, w + 15, left, right);
        if (h > 0) {
            load_row(o, h - 1, half);
            add_half_row(upper, half, w + 20, left, right);
        }
    }
}

// in: [hidden1][H/2][W/2][kLanes]; g: [C][H][W][kLanes] <- own g + what comes through the autoencoder
template <bool LEFT_BORDER, bool RIGHT_BORDER>
FASTMALADE_INLINE void conv1_transpose_tile(const AutoencoderShape& s, const float* w, const float* in, int64_t h,
                                            int64_t b, float own, float* g) {
    const int64_t columns = s.width / 2;
    Vec upper[4] = {}, lower[4] = {};
    add_half_rows(
        upper, lower, s, h, w,
        [&](int64_t o, int64_t row, Vec half[4]) {
            const float* from = in + ((o * (s.height / 2) + row) * columns + 2 * b - 1) * kLanes;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                half[j] = (LEFT_BORDER && j == 0) || (RIGHT_BORDER && j == 3) ? Vec{} : load(from + j * kLanes);
            }
        },
        WholeBorder<LEFT_BORDER>(), WholeBorder<RIGHT_BORDER>());
    float* to = g + (2 * h * s.width + 4 * b) * kLanes;
    for (int j = 0; j < 4; ++j, to += kLanes) {
        float* below = to + s.width * kLanes;
        store(to, fma(broadcast(own), load(to), upper[j]));
        store(below, fma(broadcast(own), load(below), lower[j]));
    }
}

inline void conv1_transpose(const AutoencoderShape& s, const float* packed, const TransposeLayout<Throughput>& at,
                            const TransposeScratch<Throughput>& part, float own, float* scratch) {
    const float* in = scratch + part.first;
    const int64_t tiles = s.width / 4;
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* w = packed + at.conv1 + c * s.hidden1 * 25;
        float* g = scratch + part.cotangent + c * s.height * s.width * kLanes;
        for (int64_t h = 0; h < s.height / 2; ++h) {
            for (int64_t b = 0; b < tiles; ++b) {
                const bool left = b == 0, right = b == tiles - 1;
                if (left && right) {
                    conv1_transpose_tile<true, true>(s, w, in, h, b, own, g);
                } else if (left) {
                    conv1_transpose_tile<true, false>(s, w, in, h, b, own, g);
                } else if (right) {
                    conv1_transpose_tile<false, true>(s, w, in, h, b, own, g);
                } else {
                    conv1_transpose_tile<false, false>(s, w, in, h, b, own, g);
                }
            }
        }
    }
}

// The same for one image: in: PhasePlanes, g: [C][H][W], back: working memory of as many floats. A vector is kLanes
// groups of four columns.
inline void conv1_transpose_image(const AutoencoderShape& s, const float* weights, const float* in, float own, float* g,
                                  float* back) {
    const PhasePlanes planes(s.height / 4, s.width / 4);
    const int64_t tiles = s.width / 4;
    for (int64_t c = 0; c < s.channels; ++c) {
        const float* w = weights + c * s.hidden1 * 25;
        for (int64_t h = 0; h < s.height / 2; ++h) {
            for (int64_t b = 0; b < tiles; b += kLanes) {
                const VecInt column = lane_indices() + (int32_t)b;
                Vec sums[2][4] = {};
                add_half_rows(
                    sums[0], sums[1], s, h, w,
                    [&](int64_t o, int64_t row, Vec half[4]) {
                        const float* even =
                            in + (row % 2 * 2 * s.hidden1 + o) * planes.plane + row / 2 * planes.row + b;
                        const float* odd = even + s.hidden1 * planes.plane;
                        half[0] = load(odd - 1);
                        half[1] = load(even);
                        half[2] = load(odd);
                        half[3] = load(even + 1);
                    },
                    LaneBorder{column == 0}, LaneBorder{column == (int32_t)(tiles - 1)});
                float* to = back + ((c * s.height + 2 * h) * tiles + b) * 4;
                const int64_t floats = 4 * (tiles - b);
                Vec upper[4], lower[4];
                interleave_four(sums[0], upper);
                interleave_four(sums[1], lower);
                // Floats beyond the lower row are overwritten with the next row, or lie in a margin. Beyond the upper
                // row lies the lower one, whose start an earlier vector may have written already.
                for (int j = 0; j < 4; ++j) {
                    if (j * kLanes < floats) store_some(to + j * kLanes, upper[j], floats - j * kLanes);
                }
                store_run(to + s.width, lower, 4, floats);
            }
        }
    }
    for (int64_t n = 0; n < s.pixels(); n += kLanes) {
        const int64_t count = s.pixels() - n < kLanes ? s.pixels() - n : kLanes;
        store_some(g + n, fma(broadcast(own), load_some(g + n, count), load_some(back + n, count)), count);
    }
}

template <int IMAGES>
void conv1_transpose(const AutoencoderShape& s, const float* packed, const TransposeLayout<Group<IMAGES>>& at,
                     const TransposeScratch<Group<IMAGES>>& part, float own, float* scratch) {
    const PhasePlanes planes(s.height / 4, s.width / 4);
    for (int64_t i = 0; i < IMAGES; ++i) {
        conv1_transpose_image(s, packed + at.conv1, scratch + part.first + i * planes.image(s.hidden1), own,
                              scratch + part.cotangent + i * s.pixels(), scratch + part.back);
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
