"""Options that hold several values, comma-separated."""

from __future__ import annotations

from fastmalade.cli.errors import CliError


def names(text: str) -> list[str]:
    """The values without the spaces around them; empty ones are left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


def integers(option: str, text: str) -> tuple[int, ...]:
    """The values as integers.

    Raises:
        CliError: one of them is not an integer; the message names ``option``.
    """
    try:
        return tuple(int(part) for part in names(text))
    except ValueError:
        raise CliError(f"{option}: expected integers, comma-separated, got {text!r}") from None
