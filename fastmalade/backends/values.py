"""The values that a call of a chain is made of: its steps, where its noise comes from, how it is to be computed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Steps(NamedTuple):
    """What the N steps of a chain do: x <- clamp(x + a_t (r(x) - x) + d_t z_t, low_t, high_t).

    Attributes:
        step_sizes: a_t, N finite floats.
        noise_scales: d_t >= 0, N finite floats. Where one is 0 no noise is drawn.
        lows, highs: clamp bounds, N floats each; -inf and inf where nothing is clamped.
    """

    step_sizes: tuple[float, ...]
    noise_scales: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @property
    def n_steps(self) -> int:
        """N."""
        return len(self.step_sizes)

    def part(self, first: int, count: int) -> Steps:
        """Steps ``first`` to ``first + count - 1``."""
        return Steps(*(values[first : first + count] for values in self))

    def at(self, step: int) -> tuple[float, float, float, float]:
        """a, d, low and high of one step."""
        return self.step_sizes[step], self.noise_scales[step], self.lows[step], self.highs[step]


class Step(NamedTuple):
    """One step on its own: x <- clamp(x + a (r - x) + d z, low, high).

    Attributes:
        number: 0 <= number < 2**32, which its noise is drawn for.
        step_size, noise_scale: a and d >= 0, finite. Where d is 0 no noise is drawn.
        low, high: clamp bounds, -inf and inf where nothing is clamped.
    """

    number: int
    step_size: float
    noise_scale: float
    low: float
    high: float


class NoiseSource(NamedTuple):
    """Where the noise of a chain comes from: drawn from its counters, or given.

    Attributes:
        seed: 0 <= seed < 2**64; on a GPU also int64 (1,) with its bits, read when the kernels run. Not read where noise
            is given.
        sample_ids: int64 (B,) on the device of the images, or None for 0..B-1.
        given: (N, B, C, H, W) in the dtype and on the device of the images, for a step on its own (B, ...), or None.
    """

    seed: int | Tensor
    sample_ids: Tensor | None = None
    given: Tensor | None = None


class Execution(NamedTuple):
    """How a chain is to be computed, which changes no result beyond rounding.

    Attributes:
        backend: "torch", "cpu", "cuda", "triton", or None to choose by environment, dtype and device.
        max_bytes: working memory of a gradient, or None for the backend's own.
        precision: of the products on a GPU, one of ``arguments.PRECISIONS``.
    """

    backend: str | None = None
    max_bytes: int | None = None
    precision: str = "fp32"
