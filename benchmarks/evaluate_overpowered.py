"""The overpowered attack on INC before and after robust training of the classifier (004 section 4.3), on MNIST.

    python benchmarks/evaluate_overpowered.py [--output benchmarks/results/overpowered.json] [--checkpoint robust.pt]

Searches code pairs of INC's generator against classifier C, trains the classifier against such pairs, and searches
again. Shares are of the pairs that are valid, that is close enough. The paper searches 10,000 steps, and 500 within
training, on faces; the defaults here are what a CPU does in an hour. Training resumes from --checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from fastmalade.attacks.overpowered import CodePairs, find_pairs, judge_pairs, train_robust
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.defenses import InvertAndClassify
from fastmalade.evaluation import accuracy
from fastmalade.files import write_json
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier

PAPER = {
    "before": {"valid": 0.93, "changed": 0.57, "divergence": 2.47},
    "after": {"valid": 1.0, "changed": 0.22, "divergence": 0.08},
    "same pairs, after": {"changed": 0.18, "divergence": 0.007},
    "clean": "97% before and after",
    "source": "004 section 4.3: gender of CelebA faces, BEGAN generator, 10,000 steps",
}


def describe(pairs: CodePairs) -> dict[str, Any]:
    """Shares and mean divergence (nats), over the valid pairs but for the first share."""
    valid = pairs.valid
    return {
        "pairs": len(valid),
        "valid": float(valid.float().mean()),
        "changed": pairs.share_changed if valid.any() else None,
        "divergence": float(pairs.divergence[valid].mean()) if valid.any() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000, help="steps of the two searches that are judged")
    parser.add_argument("--batches", type=int, default=100, help="batches of the training, of 100 digits each")
    parser.add_argument("--train-pairs", type=int, default=16, help="pairs in each of those batches")
    parser.add_argument("--inner-steps", type=int, default=100, help="steps of the search in each of those batches")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of the training")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/overpowered.json"))
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/overpowered.pt"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    folder = find_data_dir(arguments.data)
    test, test_labels = load_mnist("test", folder)
    train, train_labels = (part[: 20 * arguments.batches] for part in load_mnist("train", folder))
    defense = InvertAndClassify.from_pretrained("inc-mnist")
    assert isinstance(defense, InvertAndClassify)
    generator = defense.generator.requires_grad_(False)
    classifier = in_channels_last(load_classifier("mnist-c"))
    # The search differentiates the codes alone; gradients of weights would double its time.
    classifier.requires_grad_(False)
    search = {"n_steps": arguments.steps, "seed": 1}
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(arguments).items() if isinstance(v, int | float)}}
    started = time.perf_counter()
    pairs = find_pairs(generator, classifier, arguments.pairs, **search)
    result["before"] = describe(pairs)
    result["seconds of a search"] = round(time.perf_counter() - started, 1)
    result["clean before"] = accuracy(classifier, test, test_labels)
    print(json.dumps(result["before"]))
    classifier.requires_grad_(True)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # Five epochs of a fifth of the batches each: a checkpoint is written after each epoch.
    train_robust(
        classifier,
        generator,
        train,
        train_labels,
        checkpoint=arguments.checkpoint,
        epochs=5,
        batch_size=100,
        learning_rate=arguments.rate,
        pairs=arguments.train_pairs,
        inner_steps=arguments.inner_steps,
    )
    result["seconds of the training"] = round(time.perf_counter() - started, 1)
    classifier.eval().requires_grad_(False)
    result["same pairs, after"] = describe(judge_pairs(pairs, generator, classifier))
    result["after"] = describe(find_pairs(generator, classifier, arguments.pairs, **search))
    result["clean after"] = accuracy(classifier, test, test_labels)
    result |= {"of test digits": len(test), "paper": PAPER, "torch": torch.__version__}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
