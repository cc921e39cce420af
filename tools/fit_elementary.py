"""Fits the polynomials of kernels/cpu/isa/elementary.h and prints them as float32 constants.

Every polynomial minimises the largest weighted error over its interval (Lawson's reweighted least squares in
float64, on Chebyshev-spaced points); the leading terms that must stay exact are left out of the fit. Run it
to see where the constants in the header come from: python tools/fit_elementary.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def minimax_polynomial(
    target: Array, points: Array, weight: Array, degree: int, rounds: int = 300
) -> tuple[Array, float]:
    """Coefficients c[0..degree] minimising max |weight (sum c_i points^i - target)|, and that maximum."""
    basis = np.stack([points**i for i in range(degree + 1)], axis=1)
    lawson = np.full(points.size, 1.0 / points.size)
    best: tuple[Array, float] = (np.zeros(degree + 1), np.inf)
    for _ in range(rounds):
        scale = (np.sqrt(lawson) * weight)[:, None]
        column = np.abs(basis * scale).max(axis=0)
        solution = np.linalg.lstsq(basis * scale / column, target * scale[:, 0], rcond=None)[0] / column
        error = np.abs(weight * (basis @ solution - target))
        largest = float(error.max())
        if largest < best[1]:
            best = (solution, largest)
        lawson *= error + 1e-3 * largest
        lawson /= lawson.sum()
    return best


def chebyshev_points(low: float, high: float, count: int = 801) -> Array:
    """Points of [low, high] that crowd towards both ends, zero excluded."""
    points = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0.0, np.pi, count))
    return points[np.abs(points) > 1e-4 * (high - low)]


def report(
    name: str,
    target: Callable[[Array], Array],
    weight: Callable[[Array], Array],
    interval: tuple[float, float],
    degree: int,
) -> None:
    """Prints one fit: the constants in ascending order and the largest weighted error."""
    points = chebyshev_points(*interval)
    coefficients, error = minimax_polynomial(target(points), points, weight(points), degree)
    constants = ", ".join(f"{np.float32(c):.9g}f" for c in coefficients)
    print(f"{name}: {{{constants}}}")
    print(f"    largest relative error {error:.2e}, {error * 2**24:.3f} of half an ulp of 1")


def main() -> None:
    """Prints every polynomial of the header."""
    half_ln2 = 0.5 * np.log(2.0) * 1.0001
    report(
        "expm1(r) = r + r^2 p(r)",
        lambda r: (np.expm1(r) - r) / r**2,
        lambda r: np.abs(r**2 / np.expm1(r)),
        (-half_ln2, half_ln2),
        4,
    )
    report(
        "log(1 + f) = f - f^2/2 + f^3 p(f)",
        lambda f: (np.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: np.abs(f**3 / np.log1p(f)),
        (np.sqrt(0.5) - 1.0, np.sqrt(2.0) - 1.0),
        7,
    )
    report(
        "sin(pi/2 r) = r p(r^2)",
        lambda s: np.sin(np.pi / 2 * np.sqrt(s)) / np.sqrt(s),
        lambda s: np.sqrt(s) / np.sin(np.pi / 2 * np.sqrt(s)),
        (0.0, 0.25),
        3,
    )
    report(
        "cos(pi/2 r) = 1 + r^2 p(r^2)",
        lambda s: (np.cos(np.pi / 2 * np.sqrt(s)) - 1.0) / s,
        lambda s: s / np.cos(np.pi / 2 * np.sqrt(s)),
        (0.0, 0.25),
        3,
    )


if __name__ == "__main__":
    main()
