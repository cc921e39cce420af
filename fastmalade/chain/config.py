"""Settings of a chain, and the annealed step sizes and noise scales that follow from them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

Clamp = Literal["final", "every_step", "none"]


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
        low, high = value_range
        clamped = [
            self.clamp == "every_step" or (self.clamp == "final" and t == self.n_steps - 1) for t in range(self.n_steps)
        ]
        return [low if c else -math.inf for c in clamped], [high if c else math.inf for c in clamped]

    @functools.cached_property
    def settings(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Step sizes, noise scales, lower and upper bounds on [0, 1], N floats each, computed once."""
        a, d = self.schedule()
        lows, highs = self.clamp_bounds()
        return tuple(a), tuple(d), tuple(lows), tuple(highs)

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
