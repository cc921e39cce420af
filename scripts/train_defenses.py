"""Train the rival defences that ship with the package, with a card for each.

    python scripts/train_defenses.py [--stage defense-gan|inc|apudae|magnet|all] [--runs runs] [--data DIR]

Each training resumes from its checkpoint in --runs. Thresholds and statistics come from training and validation images;
test images are read once, at the end of a stage, for the card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import train_shipped as shipped

from fastmalade import Defense
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.defenses import (
    Apudae,
    AutoencodeAndClassify,
    DefenseGan,
    InvertAndClassify,
    MagNet,
    save_defense,
)
from fastmalade.evaluation import accuracy
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_autoencoder, load_classifier
from fastmalade.pretrained import read_header
from fastmalade.training.gan import train_gan
from fastmalade.training.generative import train_denoiser, train_vae

SEED = 0
GAN = {
    "epochs": 8,
    "batch_size": 64,
    "learning_rate": 4e-4,
    "critic_rate": 2.0,
    "width": 32,
    "critic_width": 32,
    "seed": SEED,
}
VAE = {"epochs": 40, "batch_size": 100, "learning_rate": 1e-3, "seed": SEED}
DENOISER = {"epochs": 2, "batch_size": 64, "learning_rate": 2e-3, "largest_sigma": 0.5, "seed": SEED}
DENOISER_VALIDATION = 2000
STATISTICS_IMAGES = 5000
ETA_IMAGES, ETA_RATE = 1000, 0.01
MAGNET_RATE = 0.001
CARD_IMAGES = {"defense-gan-mnist": 100, "inc-mnist": 500, "apudae-mnist": 500}
LIMITS = """
Trained on MNIST alone, on a small budget. A purification defence: attacks that differentiate through it are far
stronger than attacks on the bare classifier. docs/defenses.md says how its gradient is computed.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"defense-gan": gan_stage, "inc": inc_stage, "apudae": apudae_stage, "magnet": magnet_stage}
    parser.add_argument("--stage", choices=(*stages, "all"), default="all")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    for name, stage in stages.items():
        if arguments.stage in (name, "all"):
            stage(arguments.runs, find_data_dir(arguments.data))


def gan_stage(runs: Path, data: Path) -> None:
    """The generator of Defense-GAN."""
    generator, report = train_gan(
        load_mnist("train", data)[0],
        validation=load_mnist("validation", data)[0],
        checkpoint=runs / "defense-gan-mnist.pt",
        **GAN,
    )
    _finish("defense-gan-mnist", "Defense-GAN with a WGAN-GP generator", DefenseGan(generator), report, data)


def inc_stage(runs: Path, data: Path) -> None:
    """The variational autoencoder of INC, for INC itself and for autoencode-and-classify."""
    validation = load_mnist("validation", data)[0]
    model, report = train_vae(
        load_mnist("train", data)[0], validation=validation, checkpoint=runs / "inc-mnist.pt", **VAE
    )
    both = AutoencodeAndClassify(model.encoder, model.decoder)
    _finish("autoencode-mnist", "Autoencode-and-classify (paper 004, appendix A)", both, report, data)
    defense = InvertAndClassify(model.decoder)
    images = validation[:ETA_IMAGES]
    defense.eta = float(defense.distance(images, _purified(defense, images, 250)).quantile(1 - ETA_RATE))
    extra = {"eta": {"images": f"first {ETA_IMAGES} of the validation split", "rejected": ETA_RATE}}
    _finish("inc-mnist", "INC with the decoder of a variational autoencoder (paper 004)", defense, report, data, extra)


def apudae_stage(runs: Path, data: Path) -> None:
    """APuDAE's denoising autoencoder, with the statistics of its errors."""
    images = load_mnist("train", data)[0]
    model, report = train_denoiser(
        images,
        validation=load_mnist("validation", data)[0][:DENOISER_VALIDATION],
        checkpoint=runs / "apudae-mnist.pt",
        **DENOISER,
    )
    defense = Apudae(in_channels_last(model))
    mean, std = defense.calibrate(images[:STATISTICS_IMAGES])
    extra = {"errors": {"images": f"first {STATISTICS_IMAGES} of the training split", "mean": mean, "std": std}}
    _finish("apudae-mnist", "APuDAE with the autoencoder of Table 1 (paper 003)", defense, report, data, extra)


def magnet_stage(runs: Path, data: Path) -> None:
    """MagNet with the autoencoder of mala-mnist, as in 000 section 5.1: only its thresholds are new."""
    defense = MagNet(load_autoencoder("mala-mnist"))
    images = load_mnist("validation", data)[0]
    classifier = in_channels_last(load_classifier("mnist-c"))
    thresholds = defense.calibrate(images, classifier, false_positive_rate=MAGNET_RATE)
    facts = dict(read_header("mala-mnist")["training"])
    # They tell of the chain, which MagNet does not have.
    for name in ("tuning", "chain", "test_accuracy_clean_purified"):
        facts.pop(name)
    facts["thresholds"] = {"false_positive_rate_of_each": MAGNET_RATE, "classifier": "mnist-c", **thresholds}
    _write("magnet-mnist", "MagNet with the autoencoder of mala-mnist", defense, facts, data)


def _purified(defense: Defense, images: Tensor, size: int) -> Tensor:
    """Images (n, 1, 28, 28) purified in batches of ``size``."""
    with torch.no_grad():
        parts = [
            defense(part, seed=SEED, sample_ids=range(first, first + len(part)))
            for first, part in zip(range(0, len(images), size), images.split(size), strict=True)
        ]
    return torch.cat(parts)


def _finish(
    name: str, title: str, defense: Defense, report: Any, data: Path, extra: dict[str, object] | None = None
) -> None:
    _write(name, title, defense, shipped.training_facts(data, report) | (extra or {}), data)


def _write(name: str, title: str, defense: Defense, facts: dict[str, object], data: Path) -> None:
    """Store as float16, and measure what was stored."""
    path = shipped.WEIGHTS / f"{name}.safetensors"
    save_defense(defense, path, training=facts, dtype="float16")
    stored = Defense.from_pretrained(name)
    count = CARD_IMAGES.get(name, 10_000)
    images, labels = (part[:count] for part in load_mnist("test", data))
    classifier = in_channels_last(load_classifier("mnist-c"))
    correct = accuracy(classifier, _purified(stored, images, 100), labels)
    facts["test_accuracy_clean_purified"] = shipped.proportion(correct, count)
    facts["defense"] = stored.settings()  # type: ignore[operator]
    save_defense(defense, path, training=facts, dtype="float16")
    shipped.write_card(name, title, facts, script="train_defenses.py", limits=LIMITS)


if __name__ == "__main__":
    main()
