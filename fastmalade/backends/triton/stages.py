"""Buffers and launches of the Triton kernels: one step of the chain, and one step of its gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmalade.backends.triton.tiles import BLOCK_K, MAX_BLOCK_N, OPTIONS, Tile
from fastmalade.kernels.triton import convolution, tail

PRECISIONS = {"fp32": "ieee", "tf32x3": "tf32x3", "tf32": "tf32"}
"""Names of the API and those of Triton: exact float32, three tensor-core products of a split float32, or one."""
_TENSOR_CORE_COLUMNS = 16  # the narrowest product of the tensor cores


@dataclasses.dataclass(frozen=True)
class Stage:
    """A convolution as convolution_kernel computes it (kernels/triton/convolution.py).

    Attributes:
        kernel: taps of the layer along one side.
        taps: of its largest phase along one side.
        stride: of the window over the source.
        phases: per side: 1, or 2 where the output is twice as wide as the grid.
        divisor: the source is so many times smaller than the image along each side.
        epilogue: what becomes of a sum.
    """

    kernel: int
    taps: int
    stride: int
    phases: int
    divisor: int
    epilogue: int

    @property
    def frame(self) -> int:
        """Width of the zeros around its source."""
        return self.taps // 2


_TANH, _DERIVATIVE, _SUM = (e.value for e in (convolution.TANH, convolution.TANH_DERIVATIVE, convolution.SUM))
STAGES = {
    "conv1": Stage(kernel=5, taps=5, stride=2, phases=1, divisor=1, epilogue=_TANH),
    "conv2": Stage(kernel=5, taps=5, stride=2, phases=1, divisor=2, epilogue=_TANH),
    "deconv1": Stage(kernel=9, taps=5, stride=1, phases=2, divisor=4, epilogue=_TANH),
    "deconv2_backward": Stage(kernel=1, taps=1, stride=1, phases=1, divisor=2, epilogue=_DERIVATIVE),
    "deconv1_backward": Stage(kernel=9, taps=9, stride=2, phases=1, divisor=2, epilogue=_DERIVATIVE),
    "conv2_backward": Stage(kernel=5, taps=3, stride=1, phases=2, divisor=4, epilogue=_DERIVATIVE),
    "conv1_backward": Stage(kernel=5, taps=3, stride=1, phases=2, divisor=2, epilogue=_SUM),
}
_FORWARD = ("conv1", "conv2", "deconv1")


def ceil_div(n: int, d: int) -> int:
    """n / d, rounded up."""
    return -(-n // d)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The arguments ``name_image``, ``name_channel``, ``name_row`` and ``name_column`` of a kernel."""
    axes = ("image", "channel", "row", "column")
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)}


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensors' device the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Framed:
    """A channels-last buffer with a frame of zeros, and its inside as (..., B, C, rows, columns)."""

    def __init__(self, shape: Sequence[int], frame: int, device: torch.device) -> None:
        *leading, channels, rows, columns = shape
        size = (*leading, rows + 2 * frame, columns + 2 * frame, channels)
        # Kernels write the inside only, so the frame is filled with zeros once for all steps.
        make = torch.zeros if frame else torch.empty
        self.buffer = make(size, dtype=torch.float32, device=device)
        inside = self.buffer[..., frame : frame + rows, frame : frame + columns, :]
        self.inside = inside.movedim(-1, -3)


@dataclasses.dataclass(frozen=True)
class Product:
    """A stage as a matrix product: its weight among the ten, its channels, and their strides in that weight."""

    weight: int
    c_in: int
    c_out: int
    out_stride: int
    in_stride: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """Weights of one stage in the order of its product."""

    values: Tensor
    bias: Tensor
    c_in: int
    c_out: int
    k_padded: int
    block_n: int


@dataclasses.dataclass(frozen=True)
class DeviceNoise:
    """Where z comes from, on the device: ``given`` (N, B, C, H, W), or ``seed`` (1,) and ``sample_ids`` (B,), int64."""

    seed: Tensor
    sample_ids: Tensor
    given: Tensor | None

    def of_step(self, step: int, noise_scale: float, unread: Tensor) -> tuple[int, Tensor]:
        """The kernels' constant NOISE, and the noise they read; ``unread``, of its dtype, where they read none."""
        if noise_scale == 0.0:
            return tail.NO_NOISE.value, unread
        if self.given is not None:
            return tail.GIVEN.value, self.given[step]
        return tail.DRAWN.value, unread


class Model:
    """The Table 8 autoencoder on a device: packed weights, sizes, and the launches that use them.

    ``weights``: the ten contiguous float32 tensors of ``Autoencoder.weights()``; ``shape``: (C, H, W).
    """

    def __init__(
        self, weights: Sequence[Tensor], shape: Sequence[int], tiles: dict[str, Tile], *, precision: str, backward: bool
    ) -> None:
        self.weights = weights
        self.channels, self.height, self.width = shape
        self.hidden1, self.hidden2 = weights[0].shape[0], weights[2].shape[0]
        self.tiles = tiles
        self.precision = PRECISIONS[precision]
        self.device = weights[0].device
        c, h1, h2 = self.channels, self.hidden1, self.hidden2
        products = {
            "conv1": Product(weight=0, c_in=c, c_out=h1, out_stride=25 * c, in_stride=25),
            "conv2": Product(weight=2, c_in=h1, c_out=h2, out_stride=25 * h1, in_stride=25),
            "deconv1": Product(weight=4, c_in=h2, c_out=h1, out_stride=81, in_stride=81 * h1),
            "deconv2_backward": Product(weight=6, c_in=c, c_out=h1, out_stride=c, in_stride=1),
            "deconv1_backward": Product(weight=4, c_in=h1, c_out=h2, out_stride=81 * h1, in_stride=81),
            "conv2_backward": Product(weight=2, c_in=h2, c_out=h1, out_stride=25, in_stride=25 * h1),
            "conv1_backward": Product(weight=0, c_in=h1, c_out=c, out_stride=25, in_stride=25 * c),
        }
        names = STAGES if backward else _FORWARD
        self.packed = {name: self._pack(name, products[name]) for name in names}
        pixels = self.height * self.width
        self.start = torch.empty((c, self.height, self.width), dtype=torch.float32, device=self.device)
        tail.start_kernel[(ceil_div(pixels, 128), c)](
            weights[7], weights[8], weights[9], self.start, self.height, self.width, CHANNELS=c, BLOCK=128, **OPTIONS
        )

    def _pack(self, name: str, product: Product) -> Packed:
        stage = STAGES[name]
        narrowest = 1 if self.precision == "ieee" else _TENSOR_CORE_COLUMNS
        block_n = min(max(power_of_two(product.c_out), narrowest), MAX_BLOCK_N)
        k_padded = BLOCK_K * ceil_div(stage.taps**2 * product.c_in, BLOCK_K)
        n_padded = block_n * ceil_div(product.c_out, block_n)
        values = torch.empty((stage.phases**2, k_padded, n_padded), dtype=torch.float32, device=self.device)
        convolution.pack_kernel[(ceil_div(k_padded * n_padded, 512), stage.phases**2)](
            source=self.weights[product.weight], out=values,
            n_stride=product.out_stride, c_stride=product.in_stride, C_IN=product.c_in, C_OUT=product.c_out,
            KERNEL=stage.kernel, TAPS=stage.taps, PHASES=stage.phases,
            K_PADDED=k_padded, N_PADDED=n_padded, BLOCK=512, **OPTIONS,
        )  # fmt: skip
        bias = self.weights[product.weight + 1]
        return Packed(values, bias, c_in=product.c_in, c_out=product.c_out, k_padded=k_padded, block_n=block_n)

    def framed(self, stage: str, batch: int) -> Framed:
        """A buffer for the source of a stage."""
        divisor = STAGES[stage].divisor
        shape = (batch, self.packed[stage].c_in, self.height // divisor, self.width // divisor)
        return Framed(shape, STAGES[stage].frame, self.device)

    def convolve(self, name: str, source: Tensor, out: Tensor, other: Tensor) -> None:
        """One launch of convolution_kernel.

        ``source`` a framed buffer (B, rows, columns, C_in); ``out`` and ``other`` (B, C_out, rows, columns)
        of any strides, ``other`` as the stage's epilogue reads it.
        """
        stage, packed, tile = STAGES[name], self.packed[name], self.tiles[name]
        batch, _, out_rows, out_columns = out.shape
        rows, columns = out_rows // stage.phases, out_columns // stage.phases
        positions = batch * rows * columns
        grid = (ceil_div(positions, tile.block_m), stage.phases**2, ceil_div(packed.c_out, packed.block_n))
        convolution.convolution_kernel[grid](
            source=source, weights=packed.values, bias=packed.bias, other=other, out=out,
            positions=positions, grid_rows=rows, grid_columns=columns,
            source_image=source.stride(0), source_row=source.stride(1), **strides("other", other),
            **strides("out", out), C_IN=packed.c_in, C_OUT=packed.c_out,
            TAPS=stage.taps, STRIDE=stage.stride, PHASES=stage.phases, EPILOGUE=stage.epilogue,
            K_PADDED=packed.k_padded, N_PADDED=packed.values.shape[2],
            BLOCK_M=tile.block_m, BLOCK_N=packed.block_n, BLOCK_K=BLOCK_K, PRECISION=self.precision, **tile.options,
        )  # fmt: skip
