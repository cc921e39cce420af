"""What a chain's gradient keeps in memory, and what it computes again: the plan for a budget of bytes.

Going back over a step takes its activations (a record). Where not all N records fit, some states are kept as
checkpoints, and steps are run again from the last one before them, ``records`` at a time. Which checkpoints to set is
the question of Griewank and Walther (Algorithm 799: Revolve, 2000), whose answer is used here with segments of
``records`` steps in place of single steps. A step that is run again is the same step, so the gradient has the same
bits under every plan.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

DEFAULT_MAX_BYTES = 256 * 2**20
"""Where no budget is given; more where that would not hold about sqrt(N) states and records, see make_plan."""

# That many steps' activations are kept without a budget where they take less than the default: chains of the papers'
# lengths for images of a few thousand pixels run nothing twice.
_WHOLE_STEPS = 10

# Of more numbers of records than this only so many are tried: a plan a little longer than the best.
_EXHAUSTIVE, _CANDIDATES = 128, 64


class Kind(IntEnum):
    """Actions of a plan; the numbers are those of ``GradientAction`` in kernels/cpu/kernels.h."""

    LOAD = 0
    SAVE = 1
    ADVANCE = 2
    RECORD = 3
    REVERSE = 4


@dataclass(frozen=True)
class Action:
    """One action: see the comments of ``GradientAction`` in kernels/cpu/kernels.h.

    Attributes:
        kind: what is done.
        step: number of the step that begins where the action begins.
        which: number of the checkpoint (0 is the input), or of steps.
    """

    kind: Kind
    step: int
    which: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of working memory.

    Attributes:
        fixed: of each worker, whatever is kept.
        state: of one checkpoint.
        record: of the activations of one step.
        workers: threads that each keep their own (1 where the whole batch is worked on at once).
    """

    fixed: int
    state: int
    record: int
    workers: int = 1

    def of(self, checkpoints: int, records: int) -> int:
        """Bytes of all workers."""
        return self.workers * (self.fixed + checkpoints * self.state + records * self.record)


@dataclass(frozen=True)
class GradientPlan:
    """How a chain's gradient is computed under a budget; ``str`` explains it.

    Attributes:
        n_steps: N.
        records: steps whose activations are kept at once.
        checkpoints: states that are kept at once, besides the input.
        n_bytes: working memory of the gradient; the input, the two gradients and the model come on top.
        max_bytes: the budget.
        least_bytes: the smallest budget that holds a step.
        forward_steps: forward steps that the gradient runs; N where all activations fit.
        actions: what is done, in order.
    """

    n_steps: int
    records: int
    checkpoints: int
    n_bytes: int
    max_bytes: int
    least_bytes: int
    forward_steps: int
    actions: tuple[Action, ...]

    def numbers(self) -> list[int]:
        """Kind, step and count of every action, one after the other."""
        return [int(number) for a in self.actions for number in (a.kind, a.step, a.which)]

    def __str__(self) -> str:
        again = self.forward_steps / self.n_steps if self.n_steps else 0.0
        return (
            f"gradient through {self.n_steps} steps: {self.forward_steps} forward steps ({again:.2f} per step), "
            f"{self.n_steps} backward steps\n"
            f"kept at once: activations of {self.records} steps, {self.checkpoints} states; "
            f"{_megabytes(self.n_bytes)} of at most {_megabytes(self.max_bytes)}"
        )


def make_plan(
    n_steps: int, sizes: Sizes, max_bytes: int | None = None, *, default_bytes: int = DEFAULT_MAX_BYTES
) -> GradientPlan:
    """The plan with the fewest forward steps whose working memory is within the budget.

    Args:
        n_steps: N >= 0.
        sizes: bytes that a state and a record take.
        max_bytes: budget for the working memory. None stands for ``default_bytes``; for what ten steps take, but at
            most 256 MiB, where that is more; and where images or threads are so large or many that this is still
            little, for what keeps the forward steps below 2 N: a default must not refuse to compute.
        default_bytes: of the backend.

    Raises:
        TypeError, ValueError: a budget that is no whole number, or does not hold a single step.
    """
    if max_bytes is None:
        root = math.isqrt(max(n_steps - 1, 0)) + 1
        whole = sizes.of(root, min(n_steps, max(root, _WHOLE_STEPS)))
        limit = max(default_bytes, min(DEFAULT_MAX_BYTES, whole), sizes.of(root, root))
        return _cached_plan(n_steps, sizes, limit)
    return _cached_plan(n_steps, sizes, check_max_bytes(max_bytes))


def check_max_bytes(max_bytes: int) -> int:
    """``max_bytes``; TypeError or ValueError for what is no positive whole number."""
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes: expected an int or None, got {type(max_bytes).__name__} {max_bytes!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes: expected at least 1, got {max_bytes}")
    return max_bytes


@functools.lru_cache(maxsize=256)
def _cached_plan(n_steps: int, sizes: Sizes, limit: int) -> GradientPlan:
    if n_steps == 0:
        return GradientPlan(0, 0, 0, 0, limit, 0, 0, ())
    best: tuple[int, int, int] | None = None  # forward steps, records, checkpoints
    for records in _spread(1, n_steps):
        segments = -(-n_steps // records)
        spare = limit - sizes.of(0, records)
        if spare < 0:
            break
        checkpoints = min(spare // (sizes.workers * sizes.state), segments - 1)
        if checkpoints < segments - 1:
            checkpoints = min(checkpoints, _MOST_CHECKPOINTS)
        steps = _forward_steps(n_steps, records, checkpoints)
        # Of equal ones the plan that keeps less.
        if best is None or (steps, sizes.of(checkpoints, records)) < (best[0], sizes.of(best[2], best[1])):
            best = steps, records, checkpoints
    least = sizes.of(0, 1)
    if best is None:
        raise ValueError(f"max_bytes: expected at least {least}, which one step of this chain takes, got {limit}")
    steps, records, checkpoints = best
    actions = tuple(_actions(n_steps, records, checkpoints))
    assert sum(a.which for a in actions if a.kind in (Kind.ADVANCE, Kind.RECORD)) == steps
    return GradientPlan(n_steps, records, checkpoints, sizes.of(checkpoints, records), limit, least, steps, actions)


def _forward_steps(n_steps: int, records: int, checkpoints: int) -> int:
    """Forward steps of the program of :func:`_actions`."""
    segments = -(-n_steps // records)
    short = segments * records - n_steps  # the first segment may be shorter; every pass begins with it
    passes, whole = _cost(segments, checkpoints)
    return whole * records - passes * short


# Where checkpoints are fewer than segments, more than this many would bring next to nothing: with 400 of them no
# segment of 80,000 is advanced over more than twice. It also bounds the depth of the recursion in _cost.
_MOST_CHECKPOINTS = 400


@functools.lru_cache(maxsize=65536)
def _cost(segments: int, checkpoints: int) -> tuple[int, int]:
    """How often the first of ``segments`` is run, and how many segments are run in all."""
    if checkpoints == 0:
        # From the start to each segment, the last one first.
        return segments, segments * (segments + 1) // 2
    if 1 < segments <= checkpoints + 1:
        # A checkpoint before every segment: each is run on the way there and once more to record it, the last one once.
        return 2, 2 * segments - 1
    passes, runs = 1, 1
    while segments > 1:
        split = _split(segments, checkpoints)
        passes, runs = passes + 1, runs + split + _cost(segments - split, checkpoints - 1)[1]
        segments = split
    return passes, runs


def _split(segments: int, checkpoints: int) -> int:
    """After how many of ``segments`` > 1 the next of the checkpoints, at least one, is set (Revolve, section 2)."""
    # With s states, the first one included, comb(s + r, s) segments can be reversed by advancing over none of them more
    # than r times.
    s, r = checkpoints + 1, 0
    while math.comb(s + r, s) < segments:
        r += 1
    least = max(1, math.comb(s + r - 2, s) if r >= 2 else 0, segments - math.comb(s - 1 + r, s - 1))
    return min(least, segments - 1)


def _actions(n_steps: int, records: int, checkpoints: int) -> Iterator[Action]:
    short = -n_steps % records

    def step(segment: int) -> int:
        return max(segment * records - short, 0)

    # (first segment, end, checkpoint the first one starts from, checkpoints that are free), the next one last.
    todo = [(0, -(-n_steps // records), 0, list(range(checkpoints, 0, -1)))]
    at = -1  # step that the state is before
    while todo:
        first, end, base, free = todo.pop()
        if at != step(first):
            yield Action(Kind.LOAD, step(first), base)
            at = step(first)
        split = _split(end - first, len(free)) if end - first > 1 and free else 0
        turn = first + split if split else end - 1  # where the checkpoint or the record begins
        if turn > first:
            yield Action(Kind.ADVANCE, at, step(turn) - at)
            at = step(turn)
        if split:
            slot = free[-1]
            yield Action(Kind.SAVE, at, slot)
            todo += [(first, turn, base, free), (turn, end, slot, free[:-1])]
            continue
        yield Action(Kind.RECORD, at, step(end) - at)
        yield Action(Kind.REVERSE, at, step(end) - at)
        at = step(end)
        if turn > first:
            todo.append((first, turn, base, free))


def _spread(first: int, last: int) -> Sequence[int]:
    """All numbers from first to last, or some evenly spread ones with both ends where they are many."""
    if last - first < _EXHAUSTIVE:
        return range(first, last + 1)
    return sorted({first + (last - first) * n // _CANDIDATES for n in range(_CANDIDATES + 1)})


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
