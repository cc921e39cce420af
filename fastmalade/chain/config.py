"""Settings of a chain, and the annealed step sizes and noise scales that follow from them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from fastmalade.backends.values import Steps

Clamp = Literal["final", "every_step", "none"]
ClampSteps = Literal["every_step", "final", "every"]  # "every": the older word for "every_step"


@dataclasses.dataclass(frozen=True)
class ChainConfig:
    """A chain x <- x + a_t (r(x) - x) + d_t z_t, t = 0..N-1 (000 eq. 10, 001 eq. 10), with annealing.

    000 sec. 5.3 anneals alpha and delta^2 "with an off-set theta" and prints no formula. Here both follow the
    polynomial decay (theta + t)^-decay of Welling and Teh (2011), normalised to start at the values given:

        a_t = step_size   * (1 + t / offset)^(-decay)
        d_t = noise_scale * (1 + t / offset)^(-decay / 2)

    so d_t^2 decays like a_t. MagNet's reformer is ``n_steps=1, step_size=1, noise_scale=0``.

    Attributes:
        n_steps: N >= 0. No steps: the images come back as they are, unclamped.
        step_size: a_0 >= 0, multiplies the residual r(x) - x: alpha / sigma^2 of the papers.
        noise_scale: d_0 >= 0, standard deviation of the noise, in units of images in [0, 1].
        decay: exponent >= 0; 0 means constant step sizes.
        offset: theta > 0, in steps.
        clamp: when states are clamped to the range of the images: after the last step ("final"), after
            every step ("every_step") or never ("none").

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field out of its range.
    """

    n_steps: int = 10
    step_size: float = 0.2
    noise_scale: float = 0.05
    decay: float = 0.0
    offset: float = 1.0
    clamp: Clamp = "final"

    def __post_init__(self) -> None:
        if isinstance(self.n_steps, bool) or not isinstance(self.n_steps, int):
            raise TypeError(f"n_steps: expected an int, got {type(self.n_steps).__name__} {self.n_steps!r}")
        if not 0 <= self.n_steps < 2**32:
            raise ValueError(f"n_steps: expected 0 <= n_steps < 2**32, got {self.n_steps}")
        for name in ("step_size", "noise_scale", "decay", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: expected a float, got {type(value).__name__} {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: expected a finite value >= 0, got {value}")
            object.__setattr__(self, name, float(value))
        if self.offset == 0:
            raise ValueError(f"offset: expected a value > 0, got {self.offset}")
        if self.clamp not in get_args(Clamp):
            raise ValueError(f"clamp: expected one of {', '.join(get_args(Clamp))}, got {self.clamp!r}")

    def schedule(self) -> tuple[list[float], list[float]]:
        """Step sizes a_0..a_{N-1} and noise scales d_0..d_{N-1}, N floats each."""
        ratios = [1.0 + t / self.offset for t in range(self.n_steps)]
        return (
            [self.step_size * ratio**-self.decay for ratio in ratios],
            [self.noise_scale * ratio ** (-self.decay / 2) for ratio in ratios],
        )

    def clamp_bounds(self, value_range: tuple[float, float] = (0.0, 1.0)) -> tuple[list[float], list[float]]:
        """Lower and upper clamp bound of every step, N floats each; infinite where nothing is clamped."""
        lows, highs = clamp_bounds(self.n_steps, None if self.clamp == "none" else value_range, self.clamp)
        return list(lows), list(highs)

    def steps(self) -> Steps:
        """What the N steps do to images in [0, 1]."""
        return Steps(*map(tuple, self.schedule()), *map(tuple, self.clamp_bounds()))

    @functools.cached_property
    def settings(self) -> Steps:
        """:meth:`steps`, computed once. (Under torch.compile settings are constants: use :meth:`steps`.)"""
        return self.steps()

    def __getstate__(self) -> dict[str, Any]:
        # What was computed from the fields is no part of the value.
        return self.to_dict()

    def replace(self, **overrides: Any) -> ChainConfig:
        """A copy with some fields changed and everything validated again.

        Raises:
            TypeError: a name that is no field, or a value of the wrong type.
            ValueError: a value out of its range.
        """
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise TypeError(f"unknown chain setting {', '.join(unknown)}: expected any of {', '.join(names)}")
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Fields as a dictionary of plain numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChainConfig:
        """The inverse of :meth:`to_dict`; missing fields take defaults, unknown ones raise TypeError."""
        return cls().replace(**values)


def checked_steps(
    step_sizes: Sequence[float] | Tensor,
    noise_scales: Sequence[float] | Tensor,
    clamp: tuple[float, float] | None,
    clamp_steps: str,
) -> Steps:
    """The steps of a chain from the arguments of :func:`fastmalade.langevin_chain`; errors as described there."""
    a, d = _floats("step_sizes", step_sizes), _floats("noise_scales", noise_scales)
    if len(a) != len(d):
        raise ValueError(f"expected as many step sizes as noise scales, got {len(a)} and {len(d)}")
    if len(d) > 0 and min(d) < 0:
        raise ValueError(f"noise_scales: expected values >= 0, got {min(d)}")
    if clamp_steps not in get_args(ClampSteps):
        raise ValueError(f"clamp_steps: expected 'every_step' or 'final', got {clamp_steps!r}")
    return Steps(a, d, *clamp_bounds(len(a), clamp, clamp_steps))


def clamp_bounds(
    n_steps: int, clamp: tuple[float, float] | None, clamp_steps: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper bound of every step, N floats each: those of ``clamp``, infinite where nothing is clamped."""
    if clamp is None:
        return (-math.inf,) * n_steps, (math.inf,) * n_steps
    low, high = (float(bound) for bound in clamp)
    if not low <= high:
        raise ValueError(f"clamp: expected (low, high) with low <= high, got ({low}, {high})")
    free = max(n_steps - 1, 0) if clamp_steps == "final" else 0
    clamped = n_steps - free
    return (-math.inf,) * free + (low,) * clamped, (math.inf,) * free + (high,) * clamped


def _floats(name: str, values: Sequence[float] | Tensor) -> tuple[float, ...]:
    try:
        floats = tuple(float(v) for v in values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of floats, got {type(values).__name__} {values!r}") from None
    if not all(math.isfinite(v) for v in floats):
        raise ValueError(f"{name}: expected finite values, got {list(floats)}")
    return floats
