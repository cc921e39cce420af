"""Timing contenders in turns, so that whatever the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np

Call = Callable[[], object]

TURN_SECONDS = 0.02
WARM_BELOW_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of the timed calls of one contender, in microseconds per image.

    Attributes:
        median, low, high, fastest: 50%, 10% and 90% quantile and the minimum.
        repetitions: timed calls.
        rounds: turns that they came from.
    """

    median: float
    low: float
    high: float
    fastest: float
    repetitions: int
    rounds: int


def summarise(seconds: list[float], images: int, rounds: int) -> Summary:
    """Quantiles of calls that took ``seconds`` on ``images`` images each."""
    per_image = np.asarray(seconds) / images * 1e6
    low, median, high = (float(q) for q in np.quantile(per_image, [0.1, 0.5, 0.9]))
    return Summary(median, low, high, float(per_image.min()), len(seconds), rounds)


def interleaved(
    calls: Mapping[str, Call],
    images: int,
    *,
    seconds: float,
    min_rounds: int = 3,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Summary]:
    """Time every call in turns until the budget is spent.

    In each round each contender has one turn, in an order that rotates. A turn is one call that is not counted, to
    bring its code and data back into the caches (left out for calls longer than 0.1 s, which bring their own), and
    then as many timed calls as fit into 20 ms, at least one. One call of each that is not counted comes before all.

    Args:
        calls: by name.
        images: images of one call.
        seconds: budget for each contender.
        min_rounds: rounds that are run whatever they take.
        progress: called with the part of the budget that is spent, 0 to 1.
        clock: seconds, monotonic.

    Returns:
        A summary for each name.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    longest = {name: _timed(calls[name], clock) for name in names}
    budget = seconds * len(names)
    rounds = 0
    with _no_collection():
        started = clock()
        while rounds < min_rounds or clock() - started < budget:
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                call = partial(_timed, calls[name], clock)
                if longest[name] < WARM_BELOW_SECONDS:
                    longest[name] = call()
                turn = 0.0
                while turn == 0.0 or turn + times[name][-1] < TURN_SECONDS:
                    times[name].append(max(call(), 1e-9))
                    turn += times[name][-1]
            rounds += 1
            if progress is not None:
                progress(min(1.0, (clock() - started) / budget) if budget else 1.0)
    return {name: summarise(record, images, rounds) for name, record in times.items()}


def _timed(call: Call, clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


@contextmanager
def _no_collection() -> Iterator[None]:
    # A garbage collection would be charged to the contender that happens to be running.
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
