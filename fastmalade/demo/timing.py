"""Microseconds per image of the native chain and of PyTorch eager, in the same run on the same threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastmalade import backends, reference
from fastmalade.defenses.purifier import Purifier
from fastmalade.models import Autoencoder


@dataclass(frozen=True)
class TimingRow:
    """Medians of one batch size, microseconds per image.

    Attributes:
        batch: images per call.
        repeats: timed calls of each side, interleaved.
        eager_us: PyTorch eager.
        native_us: the "cpu" backend, or None where it cannot be used.
        eager_fastest_us, native_fastest_us: the fastest call of each, to tell how steady the machine was.
    """

    batch: int
    repeats: int
    eager_us: float
    native_us: float | None
    eager_fastest_us: float
    native_fastest_us: float | None

    @property
    def ratio(self) -> float | None:
        """How many times faster the native chain is."""
        return None if self.native_us is None else self.eager_us / self.native_us

    @property
    def unsteadiness(self) -> float:
        """Median over fastest call, the larger of the two sides; near 1 on an idle machine."""
        eager = self.eager_us / self.eager_fastest_us
        if self.native_us is None or self.native_fastest_us is None:
            return eager
        return max(eager, self.native_us / self.native_fastest_us)


def timing_table(
    purifier: Purifier,
    images: Tensor,
    batches: Sequence[int],
    *,
    seconds_per_batch: float = 6.0,
    progress: Callable[[int], None] | None = None,
) -> list[TimingRow]:
    """Time the purifier's chain against the same chain in PyTorch eager.

    Both sides do all N steps, with noise generated inside the timed region. Eager draws its noise with
    ``torch.randn``, the fastest way it has: drawing the reference's Philox noise in eager operations would
    make it look slower than it is. The native side is ``Purifier.forward`` with a fresh seed, dispatch
    included. Calls alternate, so that both see the same machine; the first call of each is not counted.

    Args:
        purifier: a purifier with a Table 8 ``Autoencoder`` in float32.
        images: (n, C, H, W) float32 in [0, 1]; repeated to fill a batch.
        batches: batch sizes.
        seconds_per_batch: about how long to spend on each, at least 3 and at most 101 repeats.
        progress: called with 1 after each batch size.
    """
    native = native_purifier(purifier)
    rows = []
    for batch in batches:
        x = images.repeat((batch + len(images) - 1) // len(images), 1, 1, 1)[:batch].contiguous()
        sides: list[Callable[[], object]] = [partial(eager_chain, purifier, x)]
        if native is not None:
            sides.append(partial(native, x))
        with torch.inference_mode():
            warm = sum(_seconds(side) for side in sides) + sum(_seconds(side) for side in sides)
            repeats = max(3, min(101, int(seconds_per_batch / (warm / 2))))
            times: list[list[float]] = [[] for _ in sides]
            for _ in range(repeats):
                for side, record in zip(sides, times, strict=True):
                    record.append(_seconds(side))
        per_image = [[seconds / batch * 1e6 for seconds in record] for record in times]
        eager, native_times = per_image[0], per_image[1] if len(per_image) > 1 else None
        rows.append(
            TimingRow(
                batch=batch,
                repeats=repeats,
                eager_us=statistics.median(eager),
                native_us=None if native_times is None else statistics.median(native_times),
                eager_fastest_us=min(eager),
                native_fastest_us=None if native_times is None else min(native_times),
            )
        )
        if progress is not None:
            progress(1)
    return rows


def native_purifier(purifier: Purifier) -> Purifier | None:
    """The purifier held to the "cpu" backend, or None where that cannot be used."""
    if backends.available()["cpu"] is not None:
        return None
    return Purifier(purifier.autoencoder, purifier.chain, value_range=purifier.value_range, backend="cpu")


def eager_chain(purifier: Purifier, x: Tensor) -> Tensor:
    """The purifier's chain (B, C, H, W) -> (B, C, H, W) in PyTorch eager with noise from ``torch.randn``."""
    autoencoder = purifier.autoencoder
    if not isinstance(autoencoder, Autoencoder):
        raise TypeError(f"autoencoder: expected a Table 8 Autoencoder to time, got {type(autoencoder).__name__}")
    step_sizes, noise_scales = purifier.chain.schedule()
    lows, highs = purifier.chain.clamp_bounds()
    weights = autoencoder.weights()
    generator = torch.Generator()
    return reference.langevin_chain(
        x,
        lambda state: reference.autoencoder_forward(state, weights),
        step_sizes,
        noise_scales,
        lows=lows,
        highs=highs,
        noise=lambda _step: torch.randn(x.shape, generator=generator),
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
