// The weights in the order in which the kernels read them (PackedLayout). They are packed by a kernel before every
// chain and not cached: it takes microseconds, and no change of weights in place can be missed.
#pragma once

#include "cuda/block.cuh"

namespace fastmalade::cuda {

// Element n of a packed convolution; weight(out, in, ky, kx) reads the model's own.
template <class Weight>
FASTMALADE_DEVICE float packed_tap(int n, int out_channels, int in_channels, int rows, int columns, int oc,
                                   Weight weight) {
    const int row = packed_row(columns, oc), rest = n / row, in_row = n % row;
    const int ky = rest % rows, in = rest / rows % in_channels, block = rest / rows / in_channels;
    const int kx = in_row / oc, out = block * oc + in_row % oc;
    return kx < columns && out < out_channels ? weight(out, in, ky, kx) : 0.0f;
}

// The last convolution reads an image whose pixels off the even rows and columns hold the constant tanh(bias) of the
// transposed convolution before it. Those taps, and the bias, are one number per output channel and border case: the
// start of the sum over the even pixels. Cases along one axis: first, second, inner even, inner odd, last but one,
// last. w.conv3_weight: (channels, channels, 5, 5)
FASTMALADE_DEVICE float conv3_start(const AutoencoderWeights& w, int channels, int row_case, int column_case, int out) {
    const auto lowest = [](int c) { return c == 0 ? 2 : c == 1 ? 1 : 0; };
    const auto highest = [](int c) { return c == 5 ? 2 : c == 4 ? 3 : 4; };
    double sum = w.conv3_bias[out];
    for (int in = 0; in < channels; ++in) {
        const double constant = tanh((double)w.deconv2_bias[in]);
        for (int ky = lowest(row_case); ky <= highest(row_case); ++ky) {
            for (int kx = lowest(column_case); kx <= highest(column_case); ++kx) {
                // Cases alternate even, odd: a tap of the same parity as its output reads an even pixel.
                const bool even_pixel = (row_case + ky) % 2 == 0 && (column_case + kx) % 2 == 0;
                if (!even_pixel) sum += w.conv3_weight[((out * channels + in) * 5 + ky) * 5 + kx] * constant;
            }
        }
    }
    return (float)sum;
}

// Element n of the part of the model that the forward pass reads.
template <class Tiles>
FASTMALADE_DEVICE float packed_forward(const AnyShape& s, const PackedLayout& at, const AutoencoderWeights& w, int n) {
    if (n < at.conv1_bias) {
        return packed_tap(n, s.hidden1, s.channels, 5, 5, Tiles::conv1, [&](int o, int i, int ky, int kx) {
            return w.conv1_weight[((o * s.channels + i) * 5 + ky) * 5 + kx];
        });
    }
    if (n < at.conv2) return n - at.conv1_bias < s.hidden1 ? w.conv1_bias[n - at.conv1_bias] : 0.0f;
    if (n < at.conv2_bias) {
        return packed_tap(n - at.conv2, s.hidden2, s.hidden1, 5, 5, Tiles::conv2, [&](int o, int i, int ky, int kx) {
            return w.conv2_weight[((o * s.hidden1 + i) * 5 + ky) * 5 + kx];
        });
    }
    if (n < at.deconv1[0]) return n - at.conv2_bias < s.hidden2 ? w.conv2_bias[n - at.conv2_bias] : 0.0f;
    if (n < at.deconv1_bias) {
        const int phase = n < at.deconv1[1] ? 0 : n < at.deconv1[2] ? 1 : n < at.deconv1[3] ? 2 : 3;
        const int y = phase / 2, x = phase % 2;
        return packed_tap(n - of_phase(at.deconv1, phase), s.hidden1, s.hidden2, 5 - y, 5 - x, Tiles::deconv1,
                          [&](int o, int i, int ky, int kx) {
                              return w.deconv1_weight[((i * s.hidden1 + o) * 9 + 8 - y - 2 * ky) * 9 + 8 - x - 2 * kx];
                          });
    }
    if (n < at.deconv2) return n - at.deconv1_bias < s.hidden1 ? w.deconv1_bias[n - at.deconv1_bias] : 0.0f;
    if (n < at.deconv2_bias) {
        const int c = (n - at.deconv2) / s.hidden1, i = (n - at.deconv2) % s.hidden1;
        return c < s.channels ? w.deconv2_weight[i * s.channels + c] : 0.0f;
    }
    if (n < at.conv3) return n - at.deconv2_bias < s.channels ? w.deconv2_bias[n - at.deconv2_bias] : 0.0f;
    if (n < at.conv3_start) {
        return n - at.conv3 < s.channels * s.channels * 25 ? w.conv3_weight[n - at.conv3] : 0.0f;
    }
    const int r = n - at.conv3_start, out = r % s.channels, borders = r / s.channels;
    return conv3_start(w, s.channels, borders / 6, borders % 6, out);
}

// Element n of the part that the vector-Jacobian products read: the same taps, from outputs to inputs.
template <class Tiles>
FASTMALADE_DEVICE float packed_back(const AnyShape& s, const PackedLayout& at, const AutoencoderWeights& w, int n) {
    if (n < at.deconv1_back) {
        return packed_tap(n - at.conv3_back, s.channels, s.channels, 5, 5, 1, [&](int i, int c, int ky, int kx) {
            return w.conv3_weight[((c * s.channels + i) * 5 + 4 - ky) * 5 + 4 - kx];
        });
    }
    if (n < at.conv2_back[0]) {
        return packed_tap(
            n - at.deconv1_back, s.hidden2, s.hidden1, 9, 9, Tiles::deconv1_back,
            [&](int i, int o, int ky, int kx) { return w.deconv1_weight[((i * s.hidden1 + o) * 9 + ky) * 9 + kx]; });
    }
    const bool second = n < at.conv1_back[0];
    const int (&start)[4] = second ? at.conv2_back : at.conv1_back;
    const int phase = n < start[1] ? 0 : n < start[2] ? 1 : n < start[3] ? 2 : 3;
    const int y = phase / 2, x = phase % 2;
    const int out_channels = second ? s.hidden1 : s.channels, in_channels = second ? s.hidden2 : s.hidden1;
    const float* weight = second ? w.conv2_weight : w.conv1_weight;
    return packed_tap(n - of_phase(start, phase), out_channels, in_channels, 3 - y, 3 - x,
                      second ? Tiles::conv2_back : 1, [&](int i, int o, int ky, int kx) {
                          return weight[((o * out_channels + i) * 5 + 4 - y - 2 * ky) * 5 + 4 - x - 2 * kx];
                      });
}

// packed: (packed_layout<Tiles>(s).floats,), or (forward_floats,) where `gradient` is false.
template <class Tiles>
FASTMALADE_KERNEL(kBlockThreads)
pack_kernel(const AnyShape s, const AutoencoderWeights w, const bool gradient, float* packed) {
    const PackedLayout at = packed_layout<Tiles>(s);
    const int end = gradient ? at.floats : at.forward_floats;
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < end; n += gridDim.x * blockDim.x) {
        packed[n] = n < at.forward_floats ? packed_forward<Tiles>(s, at, w, n) : packed_back<Tiles>(s, at, w, n);
    }
}

}  // namespace fastmalade::cuda
