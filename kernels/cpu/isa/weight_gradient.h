// The weights' part of a step's gradient, from the activations of the step and the gradients before each tanh, which
// the transposes have left in their working memory.
//
// Each image has sums of its own, over positions in reading order and over steps from the last to the first: their bits
// depend on neither the form nor the batch. The engine adds the images of a batch in their order.
#pragma once

#include "cpu/isa/weight_operands.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// One image's sums, in floats from their start. The innermost index runs over whole vectors of channels, of taps or of
// columns; what lies beyond the last of them is never read.
struct WeightSums : Places {
    int64_t width1, width2, taps;      // vectors of hidden1 and hidden2 channels and of five taps
    int64_t conv1, conv1_bias;         // [C][kx][ky][width1], [width1]
    int64_t conv2, conv2_bias;         // [hidden1][ky][kx][width2], [width2]
    int64_t deconv1, deconv1_columns;  // [hidden1][ky][kx][width2], [hidden1][columns of H/2 x W/2]
    int64_t deconv2, even_columns;     // [C][width1], [C][columns of H/2 x W/2]: of the bias, from even pixels
    int64_t conv3_even;                // [out C][in C][ky][taps, turned], the even pixels' share
    int64_t conv3_constant;            // [out C][ky][taps, turned], for one at every other pixel
    int64_t conv3_columns;             // [C][columns of H x W]
    int64_t half_columns, columns;

    explicit WeightSums(const AutoencoderShape& s)
        : width1(whole_vectors(s.hidden1)),
          width2(whole_vectors(s.hidden2)),
          taps(whole_vectors(5)),
          half_columns(whole_vectors(s.width / 2)),
          columns(whole_vectors(s.width)) {
        conv1 = take(s.channels * 25 * width1);
        conv1_bias = take(width1);
        conv2 = take(s.hidden1 * 25 * width2);
        conv2_bias = take(width2);
        deconv1 = take(s.hidden1 * 81 * width2);
        deconv1_columns = take(s.hidden1 * half_columns);
        deconv2 = take(s.channels * width1);
        even_columns = take(s.channels * half_columns);
        conv3_even = take(s.channels * s.channels * 5 * taps);
        conv3_constant = take(s.channels * 5 * taps);
        conv3_columns = take(s.channels * columns);
    }
};

inline int64_t weight_sum_floats(const AutoencoderShape& s) { return WeightSums(s).floats; }

// Working memory: the operands of one layer, for each image of the group.
struct WeightScratch : Places {
    int64_t vectors, vectors_stride, planes, planes_stride;

    WeightScratch(const AutoencoderShape& s, int64_t images) {
        const int64_t width1 = whole_vectors(s.hidden1), width2 = whole_vectors(s.hidden2);
        const int64_t half = s.height / 2 * (s.width / 2), quarter = half / 4;
        const int64_t bordered = s.channels * (s.height + 4) * (s.width + 4);
        vectors_stride = whole_vectors(larger(larger(half * width1, quarter * width2), s.channels * half)) + kLanes;
        planes_stride = whole_vectors(larger(s.hidden1 * half, bordered)) + kLanes;
        vectors = take(images * vectors_stride);
        planes = take(images * planes_stride);
    }
};

// A layer's weights: sums[plane][ky][kx][lane] += sum over (q, p) of
// vectors[q][p][lane] planes[plane][stride q + ky - before_rows][stride p + kx - before_columns].
struct Correlation {
    const float* vectors;  // [rows][columns][width]
    int64_t rows, columns, width;
    const float* planes;
    int64_t channels, plane, plane_rows, plane_columns, plane_row;  // plane, plane_row: floats between two of them
    int64_t stride, row_taps, column_taps, before_rows, before_columns;
    float* sums;
};

// Positions whose tap reads inside the plane.
struct Span {
    int64_t first, last, start;  // start: what the first one reads
    Span(int64_t tap, int64_t before, int64_t stride, int64_t positions, int64_t size) {
        const int64_t offset = tap - before, most = size - 1 - offset;
        first = offset < 0 ? (-offset + stride - 1) / stride : 0;
        last = most < 0 ? -1 : most / stride;
        if (last > positions - 1) last = positions - 1;
        start = stride * first + offset;
    }
};

// A block of planes and vectors whose sums stay in registers over all positions.
template <int UNITS, int CHANNELS>
FASTMALADE_NOINLINE void correlate_block(const Correlation& c, int64_t unit, int64_t channel) {
    const int64_t channel_sums = c.row_taps * c.column_taps * c.width;
    for (int64_t ky = 0; ky < c.row_taps; ++ky) {
        const Span rows(ky, c.before_rows, c.stride, c.rows, c.plane_rows);
        for (int64_t kx = 0; kx < c.column_taps; ++kx) {
            const Span columns(kx, c.before_columns, c.stride, c.columns, c.plane_columns);
            float* to = c.sums + channel * channel_sums + (ky * c.column_taps + kx) * c.width + unit * kLanes;
            // From zero, not from the sums so far: a step's share is added to those as a whole, which loses fewer
            // digits.
            Vec sum[CHANNELS][UNITS] = {};
            for (int64_t q = rows.first; q <= rows.last; ++q) {
                const float* vector = c.vectors + (q * c.columns + columns.first) * c.width + unit * kLanes;
                const int64_t row = rows.start + (q - rows.first) * c.stride;
                const float* pixel = c.planes + channel * c.plane + row * c.plane_row + columns.start;
                for (int64_t p = columns.first; p <= columns.last; ++p, vector += c.width, pixel += c.stride) {
                    Vec lanes[UNITS];
#pragma GCC unroll 2
                    for (int u = 0; u < UNITS; ++u) lanes[u] = load(vector + u * kLanes);
#pragma GCC unroll 5
                    for (int i = 0; i < CHANNELS; ++i) {
                        const Vec value = broadcast(pixel[i * c.plane]);
#pragma GCC unroll 2
                        for (int u = 0; u < UNITS; ++u) sum[i][u] = fma(lanes[u], value, sum[i][u]);
                    }
                }
            }
#pragma GCC unroll 5
            for (int i = 0; i < CHANNELS; ++i) {
#pragma GCC unroll 2
                for (int u = 0; u < UNITS; ++u) {
                    float* total = to + i * channel_sums + u * kLanes;
                    store(total, load(total) + sum[i][u]);
                }
            }
        }
    }
}

template <int UNITS>
void correlate_units(const Correlation& c, int64_t unit) {
    for (int64_t channel = 0; channel < c.channels;) {
        const int64_t left = c.channels - channel;
        switch (left) {
            case 1: correlate_block<UNITS, 1>(c, unit, channel); break;
            case 2: correlate_block<UNITS, 2>(c, unit, channel); break;
            case 3: correlate_block<UNITS, 3>(c, unit, channel); break;
            case 4: correlate_block<UNITS, 4>(c, unit, channel); break;
            default: correlate_block<UNITS, 5>(c, unit, channel); break;
        }
        channel += left < 5 ? left : 5;
    }
}

inline void correlate(const Correlation& c) {
    int64_t unit = 0;
    for (; unit + 2 <= c.width / kLanes; unit += 2) correlate_units<2>(c, unit);
    if (unit < c.width / kLanes) correlate_units<1>(c, unit);
}

// sums[lane] += vectors[position][lane] over all positions
inline void add_vectors(const float* vectors, int64_t positions, int64_t width, float* sums) {
    for (int64_t lane = 0; lane < width; lane += kLanes) {
        Vec sum = {};
        for (int64_t n = 0; n < positions; ++n) sum = sum + load(vectors + n * width + lane);
        store(sums + lane, load(sums + lane) + sum);
    }
}

// sums[channel][column] += plane[channel][row][column] over all rows
inline void add_rows(const float* plane, int64_t channels, int64_t plane_floats, int64_t rows, int64_t row_floats,
                     int64_t width, float* sums) {
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t x = 0; x < width; x += kLanes) {
            Vec sum = {};
            const float* from = plane + c * plane_floats + x;
            for (int64_t y = 0; y < rows; ++y) sum = sum + load(from + y * row_floats);
            store(sums + c * width + x, load(sums + c * width + x) + sum);
        }
    }
}

// conv3's taps from one pixel of its input: output row y reads it through tap ky where y = row + 2 - ky. g: output
// channel with a border of two, at the row and column of the input pixel; lane l of a sum is tap kx = 4 - l.
FASTMALADE_INLINE void add_taps(Vec sum[5], Vec value, const float* g, int64_t row_floats) {
#pragma GCC unroll 5
    for (int ky = 0; ky < 5; ++ky) sum[ky] = fma(value, load(g + (4 - ky) * row_floats), sum[ky]);
}

// even: [C][H/2][W/2]; g: [C][H + 4][W + 4]
inline void conv3_sums(const AutoencoderShape& s, const WeightSums& at, const float* even, const float* g,
                       float* sums) {
    const int64_t row_floats = s.width + 4, plane = (s.height + 4) * row_floats;
    const int64_t half_h = s.height / 2, half_w = s.width / 2;
    for (int64_t o = 0; o < s.channels; ++o) {
        for (int64_t i = 0; i <= s.channels; ++i) {
            // After the input channels, once for all of them: a one at every pixel that deconv2 leaves constant.
            const bool constant = i == s.channels;
            float* to = sums + (constant ? at.conv3_constant + o * 5 * at.taps
                                         : at.conv3_even + (o * s.channels + i) * 5 * at.taps);
            for (int64_t first = 0; first < at.taps; first += kLanes) {
                Vec sum[5] = {};
                const float* from = g + o * plane + first;
                // Row by row: one sum over so many pixels would lose digits that torch's own does not.
                const int64_t rows = constant ? s.height : half_h;
                for (int64_t y = 0; y < rows; ++y) {
                    Vec row[5] = {};
                    if (constant) {
                        for (int64_t x = y % 2 == 0 ? 1 : 0; x < s.width; x += y % 2 == 0 ? 2 : 1) {
                            add_taps(row, broadcast(1.0f), from + y * row_floats + x, row_floats);
                        }
                    } else {
                        const float* pixels = even + (i * half_h + y) * half_w;
                        for (int64_t x = 0; x < half_w; ++x) {
                            add_taps(row, broadcast(pixels[x]), from + 2 * y * row_floats + 2 * x, row_floats);
                        }
                    }
                    for (int ky = 0; ky < 5; ++ky) sum[ky] = sum[ky] + row[ky];
                }
                for (int ky = 0; ky < 5; ++ky) {
                    float* total = to + ky * at.taps + first;
                    store(total, load(total) + sum[ky]);
                }
            }
        }
    }
}

// The weights' gradients as torch lays them out, all ten one after the other, from the sums of a whole batch.
inline void weight_gradient(const AutoencoderShape& s, const AutoencoderWeights& w, const double* sums, float* out) {
    const WeightSums at(s);
    const auto put = [&](double value) { *out++ = (float)value; };
    const auto columns = [&](int64_t first, int64_t count) {
        double sum = 0.0;
        for (int64_t x = 0; x < count; ++x) sum += sums[first + x];
        return sum;
    };
    for (int64_t o = 0; o < s.hidden1; ++o) {
        for (int64_t n = 0; n < s.channels * 25; ++n) {
            const int64_t c = n / 25, ky = n / 5 % 5, kx = n % 5;
            put(sums[at.conv1 + ((c * 5 + kx) * 5 + ky) * at.width1 + o]);
        }
    }
    for (int64_t o = 0; o < s.hidden1; ++o) put(sums[at.conv1_bias + o]);
    for (int64_t o = 0; o < s.hidden2; ++o) {
        for (int64_t n = 0; n < s.hidden1 * 25; ++n) put(sums[at.conv2 + n * at.width2 + o]);
    }
    for (int64_t o = 0; o < s.hidden2; ++o) put(sums[at.conv2_bias + o]);
    for (int64_t i = 0; i < s.hidden2; ++i) {
        for (int64_t n = 0; n < s.hidden1 * 81; ++n) put(sums[at.deconv1 + n * at.width2 + i]);
    }
    for (int64_t o = 0; o < s.hidden1; ++o) put(columns(at.deconv1_columns + o * at.half_columns, s.width / 2));
    for (int64_t i = 0; i < s.hidden1; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) put(sums[at.deconv2 + c * at.width1 + i]);
    }
    // conv3's input is even pixels and, everywhere else, the constant tanh(bias) of deconv2.
    const auto constant_tap = [&](int64_t o, int64_t tap) {
        return sums[at.conv3_constant + (o * 5 + tap / 5) * at.taps + 4 - tap % 5];
    };
    for (int64_t c = 0; c < s.channels; ++c) {
        const double constant = __builtin_tanh((double)w.deconv2_bias[c]);
        double sum = 0.0;
        for (int64_t o = 0; o < s.channels; ++o) {
            for (int64_t tap = 0; tap < 25; ++tap) {
                sum += w.conv3_weight[(o * s.channels + c) * 25 + tap] * constant_tap(o, tap);
            }
        }
        put(columns(at.even_columns + c * at.half_columns, s.width / 2) + (1.0 - constant * constant) * sum);
    }
    for (int64_t o = 0; o < s.channels; ++o) {
        for (int64_t c = 0; c < s.channels; ++c) {
            const double constant = __builtin_tanh((double)w.deconv2_bias[c]);
            const int64_t even = at.conv3_even + (o * s.channels + c) * 5 * at.taps;
            for (int64_t tap = 0; tap < 25; ++tap) {
                put(sums[even + tap / 5 * at.taps + 4 - tap % 5] + constant * constant_tap(o, tap));
            }
        }
    }
    for (int64_t o = 0; o < s.channels; ++o) put(columns(at.conv3_columns + o * at.columns, s.width));
}

// What one step adds to the sums of a group of images.
template <class Form>
class WeightStep {
public:
    // memory: that of WeightScratch; sums: (count, weight_sum_floats)
    WeightStep(const AutoencoderShape& s, int64_t count, float* memory, float* sums)
        : s_(s), at_(s), part_(s, Form::images), count_(count), memory_(memory), sums_(sums) {}

    // After step_transpose, whose working memory still holds the gradients before each tanh. state: before the step.
    void add(const float* state, const Record<Form>& kept, const float* record, const TransposeScratch<Form>& back,
             const float* scratch) const {
        const int64_t half_h = s_.height / 2, half_w = s_.width / 2, half = half_h * half_w;
        const int64_t quarter_h = s_.height / 4, quarter_w = s_.width / 4;

        planes(last_gradient(scratch + back.inner), s_.channels, s_.height, s_.width, Border{2, 2}, part_.planes);
        planes(even_pixels(record + kept.even), s_.channels, half_h, half_w, Border{0, 0}, part_.vectors);
        each([&](const float* even, const float* g, float* sums) {
            conv3_sums(s_, at_, even, g, sums);
            const int64_t row = s_.width + 4, plane = (s_.height + 4) * row;
            add_rows(g + 2 * row + 2, s_.channels, plane, s_.height, row, at_.columns, sums + at_.conv3_columns);
        });

        planes(even_gradient(scratch + back.even), s_.channels, half_h, half_w, Border{0, 0}, part_.planes);
        vectors(half_size(record + kept.upsampled), s_.hidden1, half_h, half_w);
        each([&](const float* upsampled, const float* g, float* sums) {
            add_rows(g, s_.channels, half, half_h, half_w, at_.half_columns, sums + at_.even_columns);
            correlate(Correlation{upsampled, half_h, half_w, at_.width1, g, s_.channels, half, half_h, half_w, half_w,
                                  1, 1, 1, 0, 0, sums + at_.deconv2});
        });

        planes(upsampled_gradient(scratch + back.half), s_.hidden1, half_h, half_w, Border{0, 0}, part_.planes);
        vectors(quarter_size(record + kept.quarter), s_.hidden2, quarter_h, quarter_w);
        each([&](const float* quarter, const float* g, float* sums) {
            add_rows(g, s_.hidden1, half, half_h, half_w, at_.half_columns, sums + at_.deconv1_columns);
            correlate(Correlation{quarter, quarter_h, quarter_w, at_.width2, g, s_.hidden1, half, half_h, half_w,
                                  half_w, 2, 9, 9, 4, 4, sums + at_.deconv1});
        });

        planes(half_size(record + kept.half), s_.hidden1, half_h, half_w, Border{0, 0}, part_.planes);
        vectors(quarter_size(scratch + back.quarter), s_.hidden2, quarter_h, quarter_w);
        each([&](const float* g, const float* input, float* sums) {
            add_vectors(g, quarter_h * quarter_w, at_.width2, sums + at_.conv2_bias);
            correlate(Correlation{g, quarter_h, quarter_w, at_.width2, input, s_.hidden1, half, half_h, half_w, half_w,
                                  2, 5, 5, 2, 2, sums + at_.conv2});
        });

        planes(image(state), s_.channels, s_.height, s_.width, Border{0, 2}, part_.planes);
        vectors(half_size(scratch + back.first), s_.hidden1, half_h, half_w);
        each([&](const float* g, const float* input, float* sums) {
            add_vectors(g, half, at_.width1, sums + at_.conv1_bias);
            // One image has few channels: the five columns of taps take their place, each a plane one pixel on.
            const int64_t row = s_.width + 4;
            for (int64_t c = 0; c < s_.channels; ++c) {
                correlate(Correlation{g, half_h, half_w, at_.width1, input + c * s_.height * row, 5, 1, s_.height, row,
                                      row, 2, 5, 1, 2, 0, sums + at_.conv1 + c * 25 * at_.width1});
            }
        });
    }

private:
    // Where the operands come from. In the throughput form all lie alike.
    template <class View>
    static auto source(const float* pixels, View view) {
        if constexpr (Form::planar) {
            return view;
        } else {
            return ImagesInLanes{pixels};
        }
    }
    auto image(const float* p) const {
        return source(p, [this, p](int64_t n) { return PlainImage{p + n * s_.pixels(), s_.height, s_.width}; });
    }
    auto even_pixels(const float* p) const {
        return source(
            p, [this, p](int64_t n) { return PlainImage{p + n * s_.pixels() / 4, s_.height / 2, s_.width / 2}; });
    }
    auto last_gradient(const float* p) const {
        return source(p, [this, p](int64_t n) {
            const SplitRow split(s_.width);
            return SplitImage{p + n * s_.channels * s_.height * split.floats, s_.height, split};
        });
    }
    auto even_gradient(const float* p) const {
        return source(p, [this, p](int64_t n) {
            const PhasePlanes phases(s_.height / 4, s_.width / 4);
            return PhaseImage{p + n * phases.image(s_.channels), phases, 4, 1};
        });
    }
    auto half_size(const float* p) const {
        return source(p, [this, p](int64_t n) {
            const PhasePlanes phases(s_.height / 4, s_.width / 4);
            return PhaseImage{p + n * phases.image(s_.hidden1), phases, 1, s_.hidden1};
        });
    }
    auto upsampled_gradient(const float* p) const {
        return source(p, [this, p](int64_t n) {
            return PhaseVectorImage<Form>{{p, s_.height / 4, s_.width / 4, n}, s_.hidden1};
        });
    }
    auto quarter_size(const float* p) const {
        return source(p, [this, p](int64_t n) { return VectorImage<Form>{p, s_.height / 4, s_.width / 4, n}; });
    }

    template <class Source>
    void vectors(Source source, int64_t channels, int64_t rows, int64_t columns) const {
        gather_vectors(source, Operand{channels, rows, columns, count_, memory_ + part_.vectors, part_.vectors_stride});
    }
    template <class Source>
    void planes(Source source, int64_t channels, int64_t rows, int64_t columns, Border border, int64_t place) const {
        const int64_t stride = place == part_.planes ? part_.planes_stride : part_.vectors_stride;
        gather_planes(source, Operand{channels, rows, columns, count_, memory_ + place, stride}, border);
    }
    // run(vectors, planes, sums) of every image
    template <class Run>
    void each(Run run) const {
        for (int64_t n = 0; n < count_; ++n) {
            run(memory_ + part_.vectors + n * part_.vectors_stride, memory_ + part_.planes + n * part_.planes_stride,
                sums_ + n * at_.floats);
        }
    }

    const AutoencoderShape& s_;
    const WeightSums at_;
    const WeightScratch part_;
    const int64_t count_;
    float* memory_;
    float* sums_;
};

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
