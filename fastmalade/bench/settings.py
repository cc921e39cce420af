"""What a run of the benchmark measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastmalade.bench.contenders import Contender, select
from fastmalade.bench.task import MODEL


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choices of a run.

    Attributes:
        peers: names of peers; "all", "rewritten" and "none" stand for groups.
        batches: batch sizes.
        steps: values of N.
        shapes: (C, H, W) of the images.
        threads: threads of every contender, and processors that the process is held to.
        isas: instruction sets of the native chain; none for the widest one.
        seconds: budget of each contender in each cell.
        gradient: time the gradient with respect to the images, forward pass included.

    Raises:
        ValueError: an unknown peer, a count that is not positive, or nothing to do.
    """

    peers: tuple[str, ...] = ("all",)
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    steps: tuple[int, ...] = (10,)
    shapes: tuple[tuple[int, int, int], ...] = ((1, 28, 28),)
    threads: int = 1
    isas: tuple[str, ...] = ()
    seconds: float = 5.0
    gradient: bool = False

    def __post_init__(self) -> None:
        for name in ("batches", "steps", "shapes"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")
        for name in ("batches", "steps"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {min(getattr(self, name))}")
        for shape in self.shapes:
            if shape[0] < 1 or any(side < 4 or side % 4 for side in shape[1:]):
                raise ValueError(
                    f"shapes: expected CxHxW with H and W positive multiples of 4, got {shape_text(shape)}"
                )
        if not self.seconds >= 0:
            raise ValueError(f"seconds: expected at least 0, got {self.seconds}")
        select(self.peers)

    def contenders(self) -> list[Contender]:
        """The native chain first, with several threads also on one, then the peers."""
        return select(self.peers, self.isas, self.threads)

    def comparable(self) -> dict[str, Any]:
        """What must agree for a cell of an earlier run to be kept, as JSON values."""
        return {"model": MODEL, "threads": self.threads, "seconds": self.seconds, "gradient": self.gradient}

    def to_json(self) -> dict[str, Any]:
        """All choices as JSON values."""
        choices = dataclasses.asdict(self)
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in choices.items()}
        return {"model": MODEL, **lists, "shapes": [shape_text(shape) for shape in self.shapes]}


def shape_text(shape: Sequence[int]) -> str:
    """(1, 28, 28) as "1x28x28"."""
    return "x".join(map(str, shape))


def parse_shape(text: str) -> tuple[int, int, int]:
    """The inverse of :func:`shape_text`.

    Raises:
        ValueError: anything but three integers.
    """
    parts = text.strip().lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"shapes: expected CxHxW such as 1x28x28, got {text!r}")
    channels, height, width = map(int, parts)
    return channels, height, width
