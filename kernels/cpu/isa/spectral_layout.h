// Which transform size serves which image, how its bins are numbered, and the packed weights of cpu/isa/spectral.h.
#pragma once

#include "common/layout.h"
#include "cpu/isa/forms.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

constexpr double kPi = 3.14159265358979323846;

// cos(2 pi m / n) by its series: |x| <= pi, where 20 terms leave nothing of a double.
constexpr double cosine_of_turn(int m, int n) {
    m = ((m % n) + n) % n;
    if (2 * m > n) m = n - m;
    if (4 * m == n) return 0.0;
    const double x = 2.0 * kPi * m / n;
    double term = 1.0, sum = 1.0;
    for (int k = 1; k < 20; ++k) {
        term *= -x * x / ((2 * k - 1) * (2 * k));
        sum += term;
    }
    return sum;
}

constexpr double sine_of_turn(int m, int n) { return cosine_of_turn(4 * m - n, 4 * n); }

// Numbering of the bins. Real bins come first, one number each; then the complex ones, two numbers each. Columns kx = 0
// (and N/2) hold a real bin at ky = 0 (and N/2) and complex ones between; columns kx = 1 .. pairs hold one complex bin
// at ky = 0 (and N/2) and two, for kx and -kx, between.
template <int N>
struct Bins {
    static constexpr int pairs = (N - 1) / 2, real_lines = N % 2 == 0 ? 2 : 1;
    static constexpr int real = real_lines * real_lines, complex = (N * N - real) / 2;
    static constexpr int real_index(int kx, int ky) { return 2 * (kx != 0) + (ky != 0); }
    static constexpr int first_of_column(int kx) {
        if (kx == 0) return 0;
        if (N % 2 == 0 && kx == N / 2) return pairs;
        return real_lines * pairs + (kx - 1) * (real_lines + 2 * pairs);
    }
    // The number's place among N * N: complex bins take two.
    static constexpr int in_real_column(int kx, int ky) { return real + 2 * (first_of_column(kx) + ky - 1); }
    static constexpr int lone(int kx, int ky) { return real + 2 * (first_of_column(kx) + (ky != 0)); }
    static constexpr int twin(int kx, int ky) { return real + 2 * (first_of_column(kx) + real_lines + 2 * (ky - 1)); }
};

// Pairs (output, tap) along an axis of a grid of n positions that read inside the grid, all phases together.
inline int64_t direct_pairs_conv2(int64_t n) {
    int64_t pairs = 0;
    for (int64_t out = 0; out < n; ++out) {
        for (int64_t in = 2 * out - 2; in <= 2 * out + 2; ++in) pairs += in >= 0 && in < 2 * n;
    }
    return pairs;
}

inline int64_t direct_pairs_deconv1(int64_t n) {
    int64_t pairs = 0;
    for (int64_t out = 0; out < 2 * n; ++out) {
        for (int64_t tap = out % 2; tap < 9; tap += 2) {
            const int64_t doubled = out + 4 - tap;
            pairs += doubled >= 0 && doubled < 2 * n;
        }
    }
    return pairs;
}

// A layer on the quarter-size grid.
struct LayerTransform {
    int size;                 // of its transform, 0 where direct sums take less arithmetic
    int64_t inputs, outputs;  // convolutions' channels, phases counted apart
};

inline int transform_size(int64_t rows, int64_t columns, int reach) {
    const int64_t longest = rows > columns ? rows : columns;
    return longest <= 7 ? 7 + reach : longest == 8 ? 8 + reach : 12;
}

// How transforms of size n cover a grid (cpu/isa/spectral.h): `step` outputs along each axis are one tile, and its
// window starts `before` pixels above and left of them. A grid that one transform holds needs none.
struct Tiling {
    int64_t step, before;
    constexpr Tiling(int64_t rows, int64_t columns, int64_t n, int64_t reach)
        : step(rows <= n - reach && columns <= n - reach ? n - reach : n - 2 * reach),
          before(step == n - reach ? 0 : reach) {}
};

inline int spectral_size(int64_t rows, int64_t columns, int reach, int64_t inputs, int64_t outputs, int64_t direct) {
    const int64_t n = transform_size(rows, columns, reach);
    const int64_t step = Tiling(rows, columns, n, reach).step;
    const int64_t tiles = (rows + step - 1) / step * ((columns + step - 1) / step);
    // A complex product is four multiply-adds for two numbers; a line of a transform takes about n * n / 2.
    const int64_t products = inputs * outputs * 2 * n * n;
    const int64_t transforms = (inputs + outputs) * 2 * n * n * n / 2;
    return tiles * (products + transforms) < direct ? (int)n : 0;
}

inline LayerTransform conv2_transform(const AutoencoderShape& s) {
    const int64_t rows = s.height / 4, columns = s.width / 4;
    const int64_t direct = direct_pairs_conv2(rows) * direct_pairs_conv2(columns) * s.hidden1 * s.hidden2;
    return LayerTransform{spectral_size(rows, columns, 1, 4 * s.hidden1, s.hidden2, direct), 4 * s.hidden1, s.hidden2};
}

inline LayerTransform deconv1_transform(const AutoencoderShape& s) {
    const int64_t rows = s.height / 4, columns = s.width / 4;
    const int64_t direct = direct_pairs_deconv1(rows) * direct_pairs_deconv1(columns) * s.hidden1 * s.hidden2;
    return LayerTransform{spectral_size(rows, columns, 2, s.hidden2, 4 * s.hidden1, direct), s.hidden2, 4 * s.hidden1};
}

// What the planar forms' deconv1 and conv2's transpose write: a plane for each image, phase and channel,
// [images][4 hidden1][height][row] floats of the quarter-size grid. Both store whole vectors from the first column of
// each tile on, up to kLanes - 1 floats beyond the last column. In a row that is one tile and one vector, that vector
// is all of it. Any other row needs a margin behind it: the row below may be there already, from the tile on the left.
// deconv1's tiles decide for both, since those of the transpose are never narrower.
struct PhasePlanes {
    int64_t row, plane;
    PhasePlanes(int64_t height, int64_t width) {
        const int64_t tile = Tiling(height, width, transform_size(height, width, 2), 2).step;
        row = width <= tile && width <= kLanes ? kLanes : width + kLanes;
        plane = height * row;
    }
    int64_t image(int64_t hidden1) const { return 4 * hidden1 * plane; }
};

// The layers' transposes are always products of transforms: direct sums would be a second set of tiles, for models so
// small that it would save little.
inline LayerTransform conv2_transpose_transform(const AutoencoderShape& s) {
    return LayerTransform{transform_size(s.height / 4, s.width / 4, 1), s.hidden2, 4 * s.hidden1};
}

inline LayerTransform deconv1_transpose_transform(const AutoencoderShape& s) {
    return LayerTransform{transform_size(s.height / 4, s.width / 4, 2), 4 * s.hidden1, s.hidden2};
}

// Taps of one pair (input, output) of the stride-1 convolution, phases counted as channels: taps[2 + y][2 + x]
// multiplies the input y rows below and x columns right of the output. Zero where nothing is written.
typedef double Taps[5][5];

// Output q reads input 2 (q - 1 + j) + odd through tap 2j + odd; inputs are counted phase by phase.
inline void conv2_taps(const AutoencoderShape& s, const float* weight, int64_t input, int64_t output, Taps taps) {
    const int64_t odd_row = input / s.hidden1 / 2, odd_column = input / s.hidden1 % 2;
    const float* kernel = weight + (output * s.hidden1 + input % s.hidden1) * 25;
    for (int64_t y = 0; y < 3 - odd_row; ++y) {
        for (int64_t x = 0; x < 3 - odd_column; ++x) {
            taps[1 + y][1 + x] = kernel[(2 * y + odd_row) * 5 + 2 * x + odd_column];
        }
    }
}

// Output 2q + odd reads input q + 2 - j through tap 2j + odd; outputs are counted phase by phase.
inline void deconv1_taps(const AutoencoderShape& s, const float* weight, int64_t input, int64_t output, Taps taps) {
    const int64_t odd_row = output / s.hidden1 / 2, odd_column = output / s.hidden1 % 2;
    const float* kernel = weight + (input * s.hidden1 + output % s.hidden1) * 81;
    for (int64_t y = 0; y < 5 - odd_row; ++y) {
        for (int64_t x = 0; x < 5 - odd_column; ++x) {
            taps[4 - y][4 - x] = kernel[(2 * y + odd_row) * 9 + 2 * x + odd_column];
        }
    }
}

// What an output reads below itself, its input is read from above.
inline void turned(const Taps taps, Taps half_turn) {
    for (int y = 0; y < 5; ++y) {
        for (int x = 0; x < 5; ++x) half_turn[y][x] = taps[4 - y][4 - x];
    }
}

// cos and sin of 2 pi k (j - 2) / N: of tap j at frequency k.
template <int N>
struct TapTurns {
    static constexpr int last = N / 2;
    double cosine[last + 1][5], sine[last + 1][5];
    constexpr TapTurns() : cosine(), sine() {
        for (int k = 0; k <= last; ++k) {
            for (int j = 0; j < 5; ++j) {
                cosine[k][j] = cosine_of_turn(k * (j - 2), N);
                sine[k][j] = sine_of_turn(k * (j - 2), N);
            }
        }
    }
};

// Spectrum of the 5 x 5 taps of one phase and one pair of channels, from offset -2 to 2, in the numbering of Bins.
// An output is the correlation of the window with the taps, so its transform is X times conj(transform of the taps);
// the scale makes up for the inverse's missing 1 / N^2 and for the conjugate half that is not stored. Rows first, then
// columns: weights that are being trained are packed anew at every step.
template <int N>
void taps_spectrum(const double taps[5][5], float numbers[N * N]) {
    using B = Bins<N>;
    static constexpr TapTurns<N> turns;
    constexpr double once = 1.0 / (N * N), twice = 2.0 / (N * N);
    constexpr int last = N / 2;
    for (int kx = 0; kx <= last; ++kx) {
        double re[5], im[5];  // of each row
        for (int y = 0; y < 5; ++y) {
            re[y] = im[y] = 0.0;
            for (int x = 0; x < 5; ++x) {
                re[y] += taps[y][x] * turns.cosine[kx][x];
                im[y] += taps[y][x] * turns.sine[kx][x];
            }
        }
        const bool real_column = kx == 0 || 2 * kx == N;
        for (int ky = 0; ky <= last; ++ky) {
            double cc = 0.0, ss = 0.0, sc = 0.0, cs = 0.0;
            for (int y = 0; y < 5; ++y) {
                cc += turns.cosine[ky][y] * re[y];
                ss += turns.sine[ky][y] * im[y];
                sc += turns.sine[ky][y] * re[y];
                cs += turns.cosine[ky][y] * im[y];
            }
            const bool real_row = ky == 0 || 2 * ky == N;
            if (real_column && real_row) {
                numbers[B::real_index(kx, ky)] = (float)(once * (cc - ss));
            } else if (real_column || real_row) {
                float* to = numbers + (real_column ? B::in_real_column(kx, ky) : B::lone(kx, ky));
                to[0] = (float)(twice * (cc - ss));
                to[1] = (float)(twice * (sc + cs));
            } else {
                float* to = numbers + B::twin(kx, ky);  // of kx, then of -kx
                to[0] = (float)(twice * (cc - ss));
                to[1] = (float)(twice * (sc + cs));
                to[2] = (float)(twice * (cc + ss));
                to[3] = (float)(twice * (sc - cs));
            }
        }
    }
}

template <class Form>
inline int64_t spectral_floats(const LayerTransform& transform) {
    return transform.size * transform.size * transform.inputs * Blocks<Form>(transform.outputs).units * Form::unit;
}

// packed: per bin [block][input][unit of the block][re, im or re alone][Form::unit]. taps_of(input, output, taps) fills
// in the taps of one pair.
template <class Form, int N, class TapsOf>
void pack_bins(const LayerTransform& transform, TapsOf taps_of, float* packed) {
    const Blocks<Form> blocks(transform.outputs);
    const int64_t plane_floats = transform.inputs * blocks.units * Form::unit;
    for (int64_t n = 0; n < N * N * plane_floats; ++n) packed[n] = 0.0f;  // also the lanes beyond the last output
    float numbers[N * N];
    for (int64_t block = 0; block < blocks.count; ++block) {
        const int64_t first = blocks.first(block), units = blocks.size(block);
        for (int64_t i = 0; i < transform.inputs; ++i) {
            for (int64_t o = first * Form::unit; o < (first + units) * Form::unit && o < transform.outputs; ++o) {
                double taps[5][5] = {};
                taps_of(i, o, taps);
                taps_spectrum<N>(taps, numbers);
                const int64_t unit = o / Form::unit - first, lane = o % Form::unit;
                for (int plane = 0; plane < N * N;) {
                    const int width = plane >= Bins<N>::real ? 2 : 1;
                    float* to = packed + plane * plane_floats +
                                width * Form::unit * (transform.inputs * first + i * units + unit) + lane;
                    for (int part = 0; part < width; ++part) to[part * Form::unit] = numbers[plane + part];
                    plane += width;
                }
            }
        }
    }
}

template <class Form, class TapsOf>
void pack_spectrum(const LayerTransform& transform, TapsOf taps_of, float* packed) {
    switch (transform.size) {
        case 0: return;
        case 8: return pack_bins<Form, 8>(transform, taps_of, packed);
        case 9: return pack_bins<Form, 9>(transform, taps_of, packed);
        case 10: return pack_bins<Form, 10>(transform, taps_of, packed);
        default: return pack_bins<Form, 12>(transform, taps_of, packed);
    }
}

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
