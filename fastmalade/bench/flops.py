"""Arithmetic of one image, counted exactly: what the fractions of the ceiling are fractions of."""

from __future__ import annotations

from collections.abc import Callable


def stage_flops(channels: int, height: int, width: int, hidden1: int, hidden2: int) -> dict[str, int]:
    """Floating point operations of each convolution of one step on one image.

    A fused multiply-add counts as two. The count covers the multiply-adds of the direct convolution whose result is
    needed. It leaves out taps on zero padding and on the structural zeros between the inputs of a transposed
    convolution, and in the last convolution all taps but those on even rows and columns, because elsewhere its input is
    the constant tanh(bias) (paper 000 Table 8; docs/architecture.md). Bias, tanh, update and noise are not counted
    either.

    Args:
        channels, height, width: of an image; height and width multiples of 4.
        hidden1, hidden2: channels after the first and the second convolution.

    Raises:
        ValueError: a count that is not positive, or a side that is not a multiple of 4.
    """
    for name, count in (("channels", channels), ("hidden1", hidden1), ("hidden2", hidden2)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    for name, side in (("height", height), ("width", width)):
        if side < 4 or side % 4:
            raise ValueError(f"{name}: expected a positive multiple of 4, got {side}")

    def taps(count: Callable[[int], int], divisor: int = 1) -> int:
        return count(height // divisor) * count(width // divisor)

    multiply_adds = {
        "conv1": taps(_strided) * channels * hidden1,
        "conv2": taps(_strided, 2) * hidden1 * hidden2,
        "deconv1": taps(_transposed, 4) * hidden2 * hidden1,
        "deconv2": (height // 2) * (width // 2) * hidden1 * channels,
        "conv3": taps(_on_even) * channels * channels,
    }
    return {stage: 2 * count for stage, count in multiply_adds.items()}


def flops_per_image(channels: int, height: int, width: int, hidden1: int, hidden2: int, n_steps: int) -> int:
    """Floating point operations of a whole chain of ``n_steps`` steps on one image; see :func:`stage_flops`."""
    if n_steps < 0:
        raise ValueError(f"n_steps: expected at least 0, got {n_steps}")
    return n_steps * sum(stage_flops(channels, height, width, hidden1, hidden2).values())


def _strided(side: int) -> int:
    """Taps along one side of a convolution of 5 with stride 2 and padding 2: those inside ``side`` inputs."""
    return sum(0 <= position < side for out in range(0, side, 2) for position in range(out - 2, out + 3))


def _transposed(side: int) -> int:
    """Taps along one side of a transposed convolution of 9, stride 2, padding 4: those that hit the 2 side outputs."""
    return sum(0 <= 2 * position + tap - 4 < 2 * side for position in range(side) for tap in range(9))


def _on_even(side: int) -> int:
    """Taps along one side of a convolution of 5 with padding 2 that fall on an even input."""
    return sum(
        0 <= position < side and position % 2 == 0 for out in range(side) for position in range(out - 2, out + 3)
    )
