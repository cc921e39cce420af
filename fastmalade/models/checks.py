"""Checks of the arguments that networks are built from."""

from __future__ import annotations


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every named count is a positive integer."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}: expected a positive integer, got {count!r}")
