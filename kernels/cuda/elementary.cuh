// tanh and the normal deviates of one Philox counter, one number at a time: the scalar form of cpu/isa/elementary.h,
// with its polynomials (tools/fit_elementary.py). Division is the approximate one, 2 ulp: nothing here comes near the
// denominators (above 2^126) for which it is not.
#pragma once

#include "cuda/platform.cuh"

namespace fastmalade::cuda {

// At most 8 ulp off, odd to the bit, within [-1, 1]; NaN stays NaN (fminf would drop it).
FASTMALADE_DEVICE float tanh_float(float x) {
    x = x > 9.02f ? 9.02f : x;  // beyond, the result rounds to 1
    x = x < -9.02f ? -9.02f : x;
    const float s = x * x;
    float p = 1.33190508e-08f, q = 7.76201034e-07f;
    p = fmaf(p, s, 2.0583464e-05f);
    q = fmaf(q, s, 0.000328309106f);
    p = fmaf(p, s, 0.00349403359f);
    q = fmaf(q, s, 0.0258710701f);
    p = fmaf(p, s, 0.133797169f);
    q = fmaf(q, s, 0.467130333f);
    p = fmaf(p, s, 1.0f);
    q = fmaf(q, s, 1.0f);
    const float y = __fdividef(x * p, q);
    return y > 1.0f ? 1.0f : (y < -1.0f ? -1.0f : y);
}

// Natural logarithm of a normal positive float, at most 2 ulp off (relative also near 1).
FASTMALADE_DEVICE float log_positive(float u) {
    // u = 2^k m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    const int exponent = (__float_as_int(u) - 0x3f3504f3) >> 23;
    const float f = __int_as_float(__float_as_int(u) - exponent * (1 << 23)) - 1.0f;
    const float k = (float)exponent;
    const float f2 = f * f, f4 = f2 * f2;
    const float p01 = fmaf(0.333333313f, f, -0.5f);
    const float p23 = fmaf(0.200012267f, f, -0.250008225f);
    const float p45 = fmaf(0.142017558f, f, -0.166233569f);
    const float p67 = fmaf(0.127615988f, f, -0.13160187f);
    const float p47 = fmaf(fmaf(-0.0763451084f, f2, p67), f2, p45);
    const float p = fmaf(p47, f4, fmaf(p23, f2, p01));
    // ln 2 in two parts, of which the first times an integer below 2^15 is exact.
    const float tail = fmaf(f2, p, k * -2.12194440055e-4f);
    return fmaf(k, 0.693359375f, f + tail);
}

// Box and Muller from two words: the radius from the first, the angle from the second.
FASTMALADE_DEVICE void box_muller(uint32_t radius_word, uint32_t angle_word, float& cosine_part, float& sine_part) {
    const float radius = __fsqrt_rn(log_positive(philox_uniform(radius_word)) * -2.0f);
    // The angle 2 pi u is split in the integers: quadrant, and r in [-1/2, 1/2] of a quarter turn, both exact.
    const int m = (int)(angle_word >> 9);
    const int quadrant = (m + (1 << 20)) >> 21;
    const float r = ((float)(m - quadrant * (1 << 21)) + 0.5f) * 0x1p-21f;
    const float s = r * r;
    float sine = -0.00460164528f;
    sine = fmaf(sine, s, 0.0796800256f);
    sine = fmaf(sine, s, -0.64596343f);
    sine = fmaf(sine, s, 1.57079637f) * r;
    float cosine = 0.000903766486f;
    cosine = fmaf(cosine, s, -0.0208601654f);
    cosine = fmaf(cosine, s, 0.253669232f);
    cosine = fmaf(cosine, s, -1.23370051f);
    cosine = fmaf(cosine, s, 1.0f);
    const bool swapped = quadrant & 1;
    const float c = swapped ? sine : cosine, d = swapped ? cosine : sine;
    cosine_part = radius * ((quadrant + 1) & 2 ? -c : c);
    sine_part = radius * (quadrant & 2 ? -d : d);
}

struct Normals {
    float z[4];  // elements 4k .. 4k+3
};

// The noise of elements 4 `quad` .. 4 `quad` + 3 of one sample at one step.
FASTMALADE_DEVICE Normals normals(uint64_t seed, uint64_t sample_id, uint32_t step, uint32_t quad) {
    const PhiloxWords words = philox4x32(PhiloxWords{{quad, step, (uint32_t)sample_id, (uint32_t)(sample_id >> 32)}},
                                         (uint32_t)seed, (uint32_t)(seed >> 32));
    Normals n;
    box_muller(words.w[0], words.w[1], n.z[0], n.z[1]);
    box_muller(words.w[2], words.w[3], n.z[2], n.z[3]);
    return n;
}

}  // namespace fastmalade::cuda
