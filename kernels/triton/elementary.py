"""tanh, the normal deviate of Box and Muller, and Philox; the polynomials are those of kernels/cpu/isa/elementary.h.

CUDA's own approximations are too coarse: lg2.approx loses all digits of ln u near u = 1, and a fast tanh has an error
of 1e-5. libdevice has accurate functions, but the interpreter, which runs these kernels where there is no GPU, cannot
call them.
"""

from __future__ import annotations

import triton
import triton.language as tl

PHILOX_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
PHILOX_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
PHILOX_WEYL_0 = tl.constexpr(0x9E3779B9)
PHILOX_WEYL_1 = tl.constexpr(0xBB67AE85)
PHILOX_ROUNDS = tl.constexpr(10)


@triton.jit
def tanh(x):
    """tanh of float32, at most 8 units in the last place off, odd, within [-1, 1]; NaN stays NaN."""
    # Selections instead of tl.minimum, which would turn NaN into a number. Beyond 9.02 the result rounds to 1.
    x = tl.where(x > 9.02, 9.02, x)
    x = tl.where(x < -9.02, -9.02, x)
    s = x * x
    p = tl.fma(s, 1.33190508e-08, 2.0583464e-05)
    q = tl.fma(s, 7.76201034e-07, 0.000328309106)
    p = tl.fma(p, s, 0.00349403359)
    q = tl.fma(q, s, 0.0258710701)
    p = tl.fma(p, s, 0.133797169)
    q = tl.fma(q, s, 0.467130333)
    p = tl.fma(p, s, 1.0)
    q = tl.fma(q, s, 1.0)
    y = x * p / q
    y = tl.where(y > 1.0, 1.0, y)
    return tl.where(y < -1.0, -1.0, y)


@triton.jit
def log_positive(u):
    """Natural logarithm of a normal positive float32, at most 2 units in the last place off, also near 1."""
    # u = 2^k m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    raw = u.to(tl.int32, bitcast=True)
    exponent = (raw - 0x3F3504F3) >> 23
    f = (raw - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    k = exponent.to(tl.float32)
    p = tl.fma(f, 0.127615988, -0.13160187)
    p = tl.fma(tl.fma(f * f, -0.0763451084, p), f * f, tl.fma(f, 0.142017558, -0.166233569))
    low = tl.fma(tl.fma(f, 0.200012267, -0.250008225), f * f, tl.fma(f, 0.333333313, -0.5))
    p = tl.fma(p, f * f * f * f, low)
    # ln 2 in two parts: the first has so few digits that its product with k is exact.
    tail = tl.fma(f * f, p, k * -2.12194440055e-4)
    return tl.fma(k, 0.693359375, f + tail)


@triton.jit
def box_muller(radius_word, angle_word):
    """Two normal deviates of two words (uint32): radius times cosine and sine."""
    u = ((radius_word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    radius = tl.sqrt_rn(log_positive(u) * -2.0)
    # 2 pi u is taken apart in integers, exactly: a quadrant, and r in [-1/2, 1/2] of a quarter turn.
    m = (angle_word >> 9).to(tl.int32)
    quadrant = (m + (1 << 20)) >> 21
    r = ((m - (quadrant << 21)).to(tl.float32) + 0.5) * 4.76837158203125e-07
    s = r * r
    sine = tl.fma(s, -0.00460164528, 0.0796800256)
    sine = tl.fma(sine, s, -0.64596343)
    sine = tl.fma(sine, s, 1.57079637) * r
    cosine = tl.fma(s, 0.000903766486, -0.0208601654)
    cosine = tl.fma(cosine, s, 0.253669232)
    cosine = tl.fma(cosine, s, -1.23370051)
    cosine = tl.fma(cosine, s, 1.0)
    swapped = (quadrant & 1) != 0
    first = tl.where(swapped, sine, cosine)
    second = tl.where(swapped, cosine, sine)
    first = tl.where(((quadrant + 1) & 2) != 0, -first, first)
    second = tl.where((quadrant & 2) != 0, -second, second)
    return radius * first, radius * second


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Philox4x32-10 (Salmon et al. 2011): four words of the counter (c0, c1, c2, c3), uint32, under a 64-bit key."""
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    multiplier0 = tl.full(c0.shape, PHILOX_MULTIPLIER_0, tl.uint32)
    multiplier1 = tl.full(c0.shape, PHILOX_MULTIPLIER_1, tl.uint32)
    for _ in tl.static_range(PHILOX_ROUNDS):
        high0 = tl.umulhi(c0, multiplier0)
        high1 = tl.umulhi(c2, multiplier1)
        low0 = c0 * multiplier0
        low1 = c2 * multiplier1
        c0 = high1 ^ c1 ^ key0
        c1 = low1
        c2 = high0 ^ c3 ^ key1
        c3 = low0
        key0 = key0 + tl.full((), PHILOX_WEYL_0, tl.uint32)
        key1 = key1 + tl.full((), PHILOX_WEYL_1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words(quad, step, sample_id, seed):
    """Philox words of elements 4 quad to 4 quad + 3 of samples; quad int, sample_id int64 of one shape."""
    c0 = quad.to(tl.uint32)
    c1 = tl.zeros_like(c0) + step.to(tl.uint32)
    c2 = (sample_id & 0xFFFFFFFF).to(tl.uint32)
    c3 = ((sample_id >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox(c0, c1, c2, c3, seed)


@triton.jit
def normals(quad, step, sample_id, seed):
    """The four normal deviates of :func:`words`."""
    w0, w1, w2, w3 = words(quad, step, sample_id, seed)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def advance(x, r, z, step_size, noise_scale):
    """x + a (r - x) + d z before the clamp, each product fused with its sum."""
    return tl.fma(z, noise_scale, tl.fma(r - x, step_size, x))


@triton.jit
def clamp(v, low, high):
    """v within [low, high]; NaN stays NaN."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)
