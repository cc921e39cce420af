// Discrete Fourier transforms of a few real vectors, by their definition: for nine points that is 44 operations.
#pragma once

#include "cpu/isa/spectral_layout.h"
#include "cpu/isa/vec.h"

namespace fastmalade::cpu::FASTMALADE_ISA {
namespace {

// cos and sin of whole N-th parts of a turn, by their series in double and rounded once.
template <int N>
struct Turn {
    float cosine[N], sine[N];
    constexpr Turn() : cosine(), sine() {
        for (int m = 0; m < N; ++m) {
            cosine[m] = (float)cosine_of_turn(m, N);
            sine[m] = (float)sine_of_turn(m, N);
        }
    }
};

// Transform of N vectors along one axis. cosine[k] = sum_j x[j] cos(2 pi j k / N), k = 0 .. N/2; sine[k] likewise,
// k = 1 .. (N-1)/2 (sine[0] is not used).
template <int N>
struct Line {
    static constexpr int pairs = (N - 1) / 2, last = N / 2;
    static constexpr bool even = N % 2 == 0;
    static constexpr Turn<N> turn = Turn<N>();
    Vec cosine[last + 1];
    Vec sine[pairs + 1];

    // x: N vectors
    FASTMALADE_INLINE Line forward(const Vec* x) {
        Line f;
        Vec sum[pairs + 1], difference[pairs + 1];
#pragma GCC unroll 16
        for (int j = 1; j <= pairs; ++j) {
            sum[j] = x[j] + x[N - j];
            difference[j] = x[j] - x[N - j];
        }
#pragma GCC unroll 16
        for (int k = 0; k <= last; ++k) {
            Vec total = x[0];
            if (even) total = k % 2 == 0 ? total + x[last] : total - x[last];
#pragma GCC unroll 16
            for (int j = 1; j <= pairs; ++j) {
                const float factor = turn.cosine[j * k % N];
                if (factor == 0.0f) continue;
                total = k == 0 ? total + sum[j] : fma(broadcast(factor), sum[j], total);
            }
            f.cosine[k] = total;
        }
#pragma GCC unroll 16
        for (int k = 1; k <= pairs; ++k) {
            Vec total = broadcast(turn.sine[k]) * difference[1];
#pragma GCC unroll 16
            for (int j = 2; j <= pairs; ++j) total = fma(broadcast(turn.sine[j * k % N]), difference[j], total);
            f.sine[k] = total;
        }
        return f;
    }

    // x[j] = sum_k cosine[k] cos(2 pi j k / N) + sine[k] sin(2 pi j k / N). x: N vectors
    inline __attribute__((always_inline)) void inverse(Vec* x) const {
        x[0] = cosine[0];
#pragma GCC unroll 16
        for (int k = 1; k <= last; ++k) x[0] = x[0] + cosine[k];
#pragma GCC unroll 16
        for (int j = 1; j <= last; ++j) {
            Vec symmetric = cosine[0];
#pragma GCC unroll 16
            for (int k = 1; k <= last; ++k) {
                const float factor = turn.cosine[j * k % N];
                if (factor != 0.0f) symmetric = fma(broadcast(factor), cosine[k], symmetric);
            }
            if (even && j == last) {
                x[j] = symmetric;
                continue;
            }
            Vec odd = broadcast(turn.sine[j]) * sine[1];
#pragma GCC unroll 16
            for (int k = 2; k <= pairs; ++k) odd = fma(broadcast(turn.sine[j * k % N]), sine[k], odd);
            x[j] = symmetric + odd;
            x[N - j] = symmetric - odd;
        }
    }
};

}  // namespace
}  // namespace fastmalade::cpu::FASTMALADE_ISA
