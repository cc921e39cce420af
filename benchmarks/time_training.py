"""Time of train_purifier, and of a gradient for all weights, against eager PyTorch, in turns, on one thread.

    python benchmarks/time_training.py [--batches 12] [--output benchmarks/results/training-time.json]

Training: both sides do the same work for the same batches of 64, four in a row: six steps of projected gradient ascent
through ten steps of the chain and the classifier on 48 images, then one Adam step on the loss of these and of 16 clean
ones. The eager side is written with torch's own operations and layers, as a user would: the chain as a loop over the
module. Gradient: that of the shipped chain with respect to its images and all its weights, forward pass included; every
call finds weights that it has not seen, as in training. Processor time, one side next to the other on the same images;
the ratio is that of the medians, with the quartiles of the pairs' ratios beside it.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade import Purifier
from fastmalade.bench.machine import describe
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.data import embedded_digits
from fastmalade.files import write_json
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier
from fastmalade.training import train_purifier

OUTPUT = Path(__file__).parent / "results" / "training-time.json"
EPSILON, STEPS, BATCH, CLEAN = 0.3, 6, 64, 16
BATCHES = 4  # of one call: a training is set up once, and not for every batch
GRADIENT_BATCHES = (1, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    pixels, labels = embedded_digits()
    images = torch.from_numpy(pixels).float().div(255).unsqueeze(1)
    truth = torch.from_numpy(labels).long()
    outcome: dict[str, Any] = {"machine": describe(), "batch": BATCH, "attack_steps": STEPS}
    for joint in (False, True):
        name = "training of purifier and classifier" if joint else "training of the purifier"
        sides = {"fastmalade": ours(joint), "eager": eager(joint)}
        size = BATCHES * BATCH
        batches = [slice(n * size % 700, n * size % 700 + size) for n in range(arguments.batches + 1)]
        outcome[name] = compared(sides, [(images[part], truth[part]) for part in batches])
        print(name, outcome[name], flush=True)
    for batch in GRADIENT_BATCHES:
        name = f"gradient of images and weights, batch {batch}"
        repeated = images.repeat(math.ceil(batch / len(images)), 1, 1, 1)[:batch]
        gradients = {"fastmalade": weight_gradient(True), "eager": weight_gradient(False)}
        outcome[name] = compared(gradients, [(repeated, truth)] * (arguments.batches + 1))
        print(name, outcome[name], flush=True)
    write_json(arguments.output, outcome)


def compared(
    sides: dict[str, Callable[[Tensor, Tensor], None]], batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Times of both sides on every batch in turn; the first batch warms up."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for n, batch in enumerate(batches):
        for side, step in sides.items():
            begun = time.process_time()
            step(*batch)
            if n > 0:
                seconds[side].append(time.process_time() - begun)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratios = sorted(b / a for a, b in zip(seconds["fastmalade"], seconds["eager"], strict=True))
    return {
        "ms_per_image": {side: round(1e3 * value / len(batches[0][0]), 3) for side, value in medians.items()},
        "ratio": round(medians["eager"] / medians["fastmalade"], 2),
        "quartiles": [round(ratios[len(ratios) // 4], 2), round(ratios[3 * len(ratios) // 4], 2)],
    }


def weight_gradient(native: bool) -> Callable[[Tensor, Tensor], None]:
    """The gradient of the chain's squared result with respect to images and weights."""
    purifier = Purifier.from_pretrained("malade-mnist")
    autoencoder: nn.Module = copy.deepcopy(purifier.autoencoder).requires_grad_(True)  # type: ignore[arg-type]
    trained = Purifier(autoencoder, purifier.chain)
    sizes, scales = purifier.chain.schedule()

    def step(images: Tensor, labels: Tensor) -> None:
        leaf = x = images.clone().requires_grad_(True)
        if native:
            x = trained(x)
        else:
            for a, d in zip(sizes, scales, strict=True):
                x = x + a * (autoencoder(x) - x) + d * torch.randn_like(x)
            x = x.clamp(0.0, 1.0)
        torch.autograd.grad(x.square().sum(), [leaf, *autoencoder.parameters()])
        with torch.no_grad():
            for parameter in autoencoder.parameters():
                parameter.mul_(1.0 - 1e-7)

    return step


def ours(joint: bool) -> Callable[[Tensor, Tensor], None]:
    """One batch of train_purifier."""
    purifier, classifier = Purifier.from_pretrained("malade-mnist"), in_channels_last(load_classifier("mnist-c"))

    def step(images: Tensor, labels: Tensor) -> None:
        train_purifier(
            purifier, classifier, images, labels, train_classifier=joint, epochs=1, batch_size=BATCH,
            attack_steps=STEPS, epsilon=EPSILON, clean_share=CLEAN / BATCH, ramp=0.0, progress=False,
        )  # fmt: skip

    return step


def eager(joint: bool) -> Callable[[Tensor, Tensor], None]:
    """The same batch in torch's own operations."""
    purifier, classifier = Purifier.from_pretrained("malade-mnist"), load_classifier("mnist-c")
    autoencoder: nn.Module = copy.deepcopy(purifier.autoencoder)  # type: ignore[arg-type]
    features: Any = classifier.features
    first = nn.Conv2d(1, features[0].out_channels, features[0].kernel_size)
    first.load_state_dict(features[0].state_dict())
    features[0] = first
    classifier.requires_grad_(joint)
    sizes, scales = purifier.chain.schedule()

    def logits(x: Tensor) -> Tensor:
        for a, d in zip(sizes, scales, strict=True):
            x = x + a * (autoencoder(x) - x) + d * torch.randn_like(x)
        found: Tensor = classifier(x.clamp(0.0, 1.0))
        return found

    trained = [*autoencoder.parameters(), *(classifier.parameters() if joint else [])]

    def batch_step(images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        for parameter in trained:
            parameter.requires_grad_(False)
        centre, truth = images[CLEAN:], labels[CLEAN:]
        x = (centre + EPSILON * (2 * torch.rand_like(centre) - 1)).clamp(0.0, 1.0)
        for _ in range(STEPS):
            x = x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits(x), truth), x)
            moved = x.detach() + 2.0 / STEPS * EPSILON * gradient.sign()
            x = (centre + (moved - centre).clamp(-EPSILON, EPSILON)).clamp(0.0, 1.0)
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer.zero_grad()
        F.cross_entropy(logits(torch.cat([images[:CLEAN], x.detach()])), labels).backward()
        nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer = torch.optim.Adam(trained, lr=1e-3)
        for part in range(0, len(images), BATCH):
            batch_step(images[part : part + BATCH], labels[part : part + BATCH], optimizer)

    return step


if __name__ == "__main__":
    main()
