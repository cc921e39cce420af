"""The count of operations against a count by convolutions of ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmalade.bench import flops_per_image, stage_flops


def counted(channels, height, width, hidden1, hidden2):
    """Convolving ones with ones counts the taps that are inside; zeros in the kernel's input count as not there."""

    def ones(*shape):
        return torch.ones(shape, dtype=torch.float64)

    half, quarter = (height // 2, width // 2), (height // 4, width // 4)
    image, wide = ones(1, channels, height, width), ones(1, hidden1, *half)
    even = torch.zeros_like(image)
    even[..., ::2, ::2] = 1
    taps = {
        "conv1": F.conv2d(image, ones(hidden1, channels, 5, 5), stride=2, padding=2),
        "conv2": F.conv2d(wide, ones(hidden2, hidden1, 5, 5), stride=2, padding=2),
        "deconv1": F.conv_transpose2d(
            ones(1, hidden2, *quarter), ones(hidden2, hidden1, 9, 9), stride=2, padding=4, output_padding=1
        ),
        "deconv2": F.conv_transpose2d(wide, ones(hidden1, channels, 1, 1), stride=2, output_padding=1),
        "conv3": F.conv2d(even, ones(channels, channels, 5, 5), padding=2),
    }
    return {stage: 2 * int(count.sum()) for stage, count in taps.items()}


@pytest.mark.parametrize("sizes", [(1, 28, 28, 10, 25), (3, 8, 12, 10, 25), (2, 4, 4, 1, 3), (1, 4, 16, 7, 2)])
def test_flops_are_those_counted_by_brute_force(sizes):
    assert stage_flops(*sizes) == counted(*sizes)
    assert flops_per_image(*sizes, 7) == 7 * sum(counted(*sizes).values())


def test_the_chain_of_the_papers_takes_about_20_mflop():
    assert 18e6 < flops_per_image(1, 28, 28, 10, 25, 10) < 22e6
    assert flops_per_image(1, 28, 28, 10, 25, 0) == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 28, 28, 10, 25), "channels: expected at least 1, got 0"),
        ((1, 27, 28, 10, 25), "height: expected a positive multiple of 4, got 27"),
        ((1, 28, 0, 10, 25), "width: expected a positive multiple of 4, got 0"),
        ((1, 28, 28, 10, 0), "hidden2: expected at least 1, got 0"),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        stage_flops(*sizes)
