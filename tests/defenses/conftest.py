"""Every defence with small networks, on real digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastmalade import Autoencoder, ChainConfig, Defense, Purifier
from fastmalade.defenses import (
    Apudae,
    AutoencodeAndClassify,
    DeepPrior,
    DefenseGan,
    InvertAndClassify,
    MagNet,
)
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.gan import GanGenerator
from fastmalade.models.prior import PriorNetwork
from fastmalade.models.vae import VaeDecoder, VaeEncoder

APUDAE = ("direct", "A", "B", "C", "D", "E", "F", "G")
NAMES = ("malade", "magnet", "defense-gan", "inc", "autoencode", "dip-inc", *(f"apudae-{v}" for v in APUDAE))


def _build(name: str, value_range: tuple[float, float]) -> Defense:
    options = {"value_range": value_range}
    if name == "malade":
        return Purifier(Autoencoder(1, (3, 4)), ChainConfig(3, 0.3, 0.1), **options)
    if name == "magnet":
        return MagNet(Autoencoder(1, (3, 4)), **options)
    if name == "defense-gan":
        return DefenseGan(GanGenerator(8, 2), n_steps=5, n_restarts=3, **options)
    if name == "inc":
        return InvertAndClassify(VaeDecoder(4, 12), n_steps=5, eta=5.0, **options)
    if name == "autoencode":
        return AutoencodeAndClassify(VaeEncoder(4, 12), VaeDecoder(4, 12), **options)
    if name == "dip-inc":
        network = PriorNetwork(1, 3, (4, 4), 2)
        return DeepPrior(network, n_steps=3, stop_error=0.0, gradient="unrolled", **options)
    # The errors of these untrained networks are 104 to 108: above mu, so that "E" to "G" do something.
    statistics = {"error_mean": 100.0, "error_std": 8.0}
    return Apudae(SkipDenoiser(1, 4, 3), variant=name.removeprefix("apudae-"), n_steps=4, **statistics, **options)


@pytest.fixture
def make_defense() -> Callable[..., Defense]:
    """Builds a small defence by name, always with the same parameters."""

    def make(name: str, value_range: tuple[float, float] = (0.0, 1.0)) -> Defense:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            defense = _build(name, value_range)
        return defense.requires_grad_(False).eval()

    return make


@pytest.fixture(params=NAMES)
def defense(request: pytest.FixtureRequest, make_defense: Callable[..., Defense]) -> Defense:
    """Each defence in turn."""
    return make_defense(request.param)


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
