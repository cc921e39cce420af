"""Turns and quantiles, with a clock that the test sets."""

from __future__ import annotations

import gc

import pytest

from fastmalade.bench.timing import interleaved, summarise


class Clock:
    """Time passes only inside calls."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, *seconds):
        durations = iter(lambda: seconds[min(len([n for n in self.log if n == name]), len(seconds) - 1)], None)

        def run():
            duration = next(durations)
            self.log.append(name)
            self.now += duration

        return run


def test_contenders_take_turns_and_the_order_rotates():
    clock = Clock()
    calls = {"a": clock.call("a", 1.0), "b": clock.call("b", 2.0), "c": clock.call("c", 4.0)}
    found = interleaved(calls, 10, seconds=0.0, min_rounds=3, clock=clock)
    # One call of each that is not counted, then three rounds; calls longer than 0.1 s are not warmed up again.
    assert "".join(clock.log) == "abc" + "abc" + "bca" + "cab"
    assert {name: (s.median, s.repetitions, s.rounds) for name, s in found.items()} == {
        "a": (pytest.approx(1e5), 3, 3),
        "b": (pytest.approx(2e5), 3, 3),
        "c": (pytest.approx(4e5), 3, 3),
    }


def test_short_calls_are_warmed_up_and_repeated_within_a_turn():
    clock = Clock()
    calls = {"fast": clock.call("fast", 5.0, 0.004), "slow": clock.call("slow", 0.05)}
    found = interleaved(calls, 1, seconds=0.0, min_rounds=2, clock=clock)
    # The first, slow call of "fast" is not counted, nor the warm one of each turn.
    assert found["fast"].repetitions == 10
    assert found["fast"].high == pytest.approx(4000)
    assert found["slow"].repetitions == 2


def test_the_budget_is_for_each_contender():
    clock = Clock()
    parts = []
    calls = {"a": clock.call("a", 1.0), "b": clock.call("b", 1.0)}
    found = interleaved(calls, 1, seconds=10.0, clock=clock, progress=parts.append)
    assert found["a"].repetitions == found["b"].repetitions == 10
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_garbage_collection_is_as_before():
    seen = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, 1, seconds=0.0)
    assert not any(seen[1:])
    assert gc.isenabled()


def test_quantiles():
    found = summarise([i * 1e-3 for i in range(101)], 10, 7)
    assert (found.low, found.median, found.high, found.fastest) == pytest.approx((1000, 5000, 9000, 0))
    assert (found.repetitions, found.rounds) == (101, 7)
