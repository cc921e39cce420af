"""Rounding errors of three ways to the 9x9 transposed convolution: torch, Winograd's transforms, the native kernel.

    python benchmarks/transform_errors.py [--images 64]

Why the native kernels use discrete Fourier transforms (docs/performance.md): Winograd's F(4x4, 5x5) with the points
0, +-1, +-1/2, +-2 and infinity, simulated here in float32 on the four phases of the layer, takes about as few
multiplications but leaves the tolerance rule (twice torch float32's error plus 1e-6, against float64) on networks whose
tanh is not saturated. Errors are the largest of r(x) over all pixels of the digits in the shipped sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmalade import Autoencoder, Purifier
from fastmalade.backends.cpu import calls as cpu
from fastmalade.data import embedded_digits

POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "1/2", "-1/2", "2", "-2"))
OUTPUTS, TAPS = 4, 5
SIZE = OUTPUTS + TAPS - 1
Layer = Callable[[Tensor], Tensor]


def winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, tap and input transform (4, 8), (8, 5), (8, 8), exact in rationals, then float64."""

    def vandermonde(columns: int) -> list[list[Fraction]]:
        finite = [[p**k for k in range(columns)] for p in POINTS]
        return [*finite, [Fraction(int(k == columns - 1)) for k in range(columns)]]

    rows = [row + [Fraction(int(i == j)) for j in range(SIZE)] for i, row in enumerate(vandermonde(SIZE))]
    for column in range(SIZE):
        pivot = next(i for i in range(column, SIZE) if rows[i][column] != 0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [v / rows[column][column] for v in rows[column]]
        for i in range(SIZE):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    inverse = np.array([[float(v) for v in row[SIZE:]] for row in rows])
    output = np.array([[float(v) for v in row] for row in vandermonde(OUTPUTS)]).T
    taps = np.array([[float(v) for v in row] for row in vandermonde(TAPS)])
    return output, taps, inverse.T


def winograd_deconv1(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The transposed layer in float32: x (B, h2, 7, 7), weight (h2, h1, 9, 9) -> (B, h1, 14, 14), no tanh."""
    output, taps, inputs = winograd_matrices()
    output32, inputs32 = output.astype(np.float32), inputs.astype(np.float32)
    batch, _, side, _ = x.shape
    tiles = -(-side // OUTPUTS)
    padded = np.zeros((batch, x.shape[1], tiles * OUTPUTS + 4, tiles * OUTPUTS + 4), np.float32)
    padded[:, :, 2 : 2 + side, 2 : 2 + side] = x.numpy()
    result = np.zeros((batch, weight.shape[1], 2 * side, 2 * side), np.float32)
    for phase in range(4):
        odd = divmod(phase, 2)
        kernel = np.zeros((*weight.shape[:2], 5, 5))
        for y in range(5 - odd[0]):
            for z in range(5 - odd[1]):
                kernel[:, :, 4 - y, 4 - z] = weight[:, :, 2 * y + odd[0], 2 * z + odd[1]].double().numpy()
        spectrum = np.einsum("ia,jc,xyac->ijxy", taps, taps, kernel).astype(np.float32)
        for row in range(tiles):
            for column in range(tiles):
                at = (slice(row * OUTPUTS, row * OUTPUTS + SIZE), slice(column * OUTPUTS, column * OUTPUTS + SIZE))
                half = np.einsum("ia,bxac->bxic", inputs32, padded[(slice(None), slice(None), *at)])
                window = np.einsum("jc,bxic->bxij", inputs32, half)
                products = np.einsum("ijxy,bxij->byij", spectrum, window)
                half = np.einsum("ia,byac->byic", output32, products)
                tile = np.einsum("jc,byic->byij", output32, half) + bias.numpy()[None, :, None, None]
                height, width = (min(OUTPUTS, side - OUTPUTS * n) for n in (row, column))
                top, left = odd[0] + 2 * row * OUTPUTS, odd[1] + 2 * column * OUTPUTS
                result[:, :, top : top + 2 * height : 2, left : left + 2 * width : 2] = tile[:, :, :height, :width]
    return torch.from_numpy(result)


def forward(x: Tensor, w: list[Tensor], deconv1: Layer) -> Tensor:
    """r(x) with the given transposed layer (paper 000, Table 8)."""
    x = torch.tanh(F.conv2d(x, w[0], w[1], stride=2, padding=2))
    x = torch.tanh(F.conv2d(x, w[2], w[3], stride=2, padding=2))
    x = torch.tanh(deconv1(x))
    x = torch.tanh(F.conv_transpose2d(x, w[6], w[7], stride=2, output_padding=1))
    return torch.tanh(F.conv2d(x, w[8], w[9], padding=2))


def direct(w: list[Tensor]) -> Layer:
    """The layer by torch's own transposed convolution."""
    return lambda h: F.conv_transpose2d(h, w[4], w[5], stride=2, padding=4, output_padding=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    digits = embedded_digits()[0][: parser.parse_args().images]
    x = torch.from_numpy(digits[:, None] / np.float32(255))
    networks = {"malade-mnist": Purifier.from_pretrained("malade-mnist").autoencoder}
    for seed in range(3):
        networks[f"untrained, seed {seed}"] = Autoencoder(generator=torch.Generator().manual_seed(seed))
    print(f"{'network':>20} {'torch':>9} {'Winograd':>9} {'native':>9} {'allowed':>9}")
    for name, network in networks.items():
        w32 = [w.detach() for w in network.weights()]
        w64 = [w.double() for w in w32]
        exact = forward(x.double(), w64, direct(w64))
        results = (
            forward(x, w32, direct(w32)),
            forward(x, w32, lambda h, w=w32: winograd_deconv1(h, w[4], w[5])),
            cpu.autoencoder_forward(x, w32),
        )
        errors = [float((r.double() - exact).abs().max()) for r in results]
        print(f"{name:>20} " + " ".join(f"{e:9.2e}" for e in [*errors, 2 * errors[0] + 1e-6]))


if __name__ == "__main__":
    main()
