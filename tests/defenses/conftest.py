"""Every defence with small networks, on real digits."""

from __future__ import annotations

import pytest
import torch
from small_defenses import NAMES, small_defense
from torch import Tensor, nn

from fastmalade import Defense

# Of one defence's variants "direct", "C" and "E" are enough for `make check`.
REPETITION = [f"apudae-{variant}" for variant in "ABDFG"]


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.repetition] * (n in REPETITION)) for n in NAMES])
def defense(request: pytest.FixtureRequest) -> Defense:
    """Each defence in turn."""
    return small_defense(request.param)


@pytest.fixture
def images(digits: tuple[Tensor, Tensor]) -> Tensor:
    """Five digits with some grey added, so that no pixel sits on the edge of the range."""
    return 0.8 * digits[0][:5] + 0.1


@pytest.fixture
def linear_generator() -> nn.Module:
    """G(z) = W z: its projection is known in closed form."""
    return LinearGenerator()


class LinearGenerator(nn.Module):
    latent_dim, out_channels, image_size = 3, 1, (4, 4)

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.weight = nn.Parameter(torch.linalg.qr(weight).Q, requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T).reshape(-1, 1, 4, 4)
