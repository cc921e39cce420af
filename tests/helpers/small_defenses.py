"""Every defence with small untrained networks."""

from __future__ import annotations

import torch

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


def small_defense(name: str, value_range: tuple[float, float] = (0.0, 1.0)) -> Defense:
    """A small defence by name, always with the same parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense = _build(name, value_range)
    return defense.requires_grad_(False).eval()


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
