"""The digits that a command works on: --split and --images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastmalade.cli.errors import CliError

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("embedded", "validation", "test")


def digits(split: str, count: int | None, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) in [0, 1] and labels (n,) of a split, ``count`` of them spread evenly, or all.

    Raises:
        CliError: another split, or a count that it does not have.
    """
    import torch

    from fastmalade.data import embedded_tensors, load_mnist

    if split not in SPLITS:
        raise CliError(f"--split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if split == "embedded":
        x, y = embedded_tensors()
    else:
        x, y = load_mnist(split, data_dir)  # type: ignore[arg-type]
    if count is None:
        return x, y
    if not 1 <= count <= len(x):
        raise CliError(f"--images: expected 1 to {len(x)}, got {count}")
    # Evenly spread: the embedded digits are sorted by no rule that an attack may depend on, but need not be.
    chosen = torch.arange(count) * len(x) // count
    return x[chosen], y[chosen]
