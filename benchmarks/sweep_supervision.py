"""How much supervision: sDAEs over the weight lambda of the supervised term and the training noise sigma^2.

    python benchmarks/sweep_supervision.py [--cells NAME ...] [--runs runs] [--data DIR]

A cell trains one autoencoder ("dae": from a DAE of the same sigma^2; "scratch": from fresh parameters; all with
balanced classes, so that lambda = 0 is MALA in everything else), searches a chain for it on the first 1,000 validation
images under attacks on the bare classifier and, on some of these, attacks through the chain (BPDA and the exact
gradient). It is judged on the last 2,000: accuracy clean and under attacks on the bare classifier, and for 200 of them
under longer attacks through the chain that was found. Test images are not read.
benchmarks/results/supervision.json keeps every cell; those already there are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import ChainConfig, DefendedClassifier, Purifier
from fastmalade.attacks import PGD
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.evaluation import accuracy, attacked_images
from fastmalade.evaluation.tuning import ChainSearch, tune_chain
from fastmalade.files import write_json
from fastmalade.models import Autoencoder, in_channels_last
from fastmalade.models.registry import load_classifier
from fastmalade.training import train_autoencoder

RESULTS = Path(__file__).parent / "results" / "supervision.json"
LAMBDAS = (0.0, 1.0, 10.0, 100.0, 784.0)
SIGMA2 = (0.07, 0.15, 0.3)
START = {"epochs": 20, "learning_rate": 1e-2}
FROM_DAE = {"epochs": 3, "learning_rate": 3e-3}
FROM_SCRATCH = {"epochs": 8, "learning_rate": 1e-2}
CONDITIONS = (("pgd", 0.2), ("pgd", 0.3), ("fgsm", 0.3))
SEARCH_IMAGES, JUDGED_IMAGES, EXACT_IMAGES = 1000, 2000, 200
N_STEPS = (1, 5, 10, 25)
SEARCH_ATTACKS = {
    "bpda": PGD(epsilon=0.3, steps=10, step_size=0.06, eot=2, gradient="bpda", judge_chains=3, seed=0),
    "exact": PGD(epsilon=0.3, steps=10, step_size=0.06, eot=2, gradient="unrolled", judge_chains=3, seed=0),
}
EXACT = PGD(epsilon=0.3, steps=40, step_size=0.03, schedule="cosine", eot=4, gradient="unrolled", seed=0)
BPDA = dataclasses.replace(EXACT, gradient="bpda")


# What earlier searches found, for an autoencoder with lambda = 0 and with 784, and the first shipped chain: chances are
# even where all begin with the same good ones.
STARTS = (
    ChainConfig(1, 1.5, 0.168, 0.0, 1.0, "every_step"),
    ChainConfig(5, 1.24, 0.021, 0.788, 1.33, "final"),
    ChainConfig(10, 0.289, 0.0404, 0.814, 3.91, "final"),
)


def search_for(sigma2: float) -> ChainSearch:
    """The search for a chain, the same for every lambda."""
    return ChainSearch(
        n_steps=N_STEPS, n_random=24, n_local=16, coarse_images=300, attacked_images=150, clean_loss=0.012,
        sigma2=sigma2, starts=STARTS,
    )  # fmt: skip


def cells() -> list[tuple[float, float, str, int]]:
    """lambda, sigma^2, start and seed of every cell, those that answer most first."""
    plan = [(lam, sigma2, "dae", 0) for sigma2 in (0.15, 0.3, 0.07) for lam in (0.0, 784.0, 10.0, 100.0, 1.0)]
    plan += [(lam, sigma2, "scratch", 0) for sigma2 in (0.15, 0.3, 0.07) for lam in (784.0, 0.0, 100.0, 10.0, 1.0)]
    # Where the differences are small: more seeds.
    return plan + [(lam, 0.15, "dae", seed) for seed in (1, 2) for lam in LAMBDAS]


def name_of(lam: float, sigma2: float, start: str, seed: int) -> str:
    """Of a cell, in the file of results."""
    return f"lambda={lam:g} sigma2={sigma2:g} start={start} seed={seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", help="names of cells, as in the results; all of them by default")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    keep_freed_memory()
    data = find_data_dir(arguments.data)
    for cell in cells():
        name = name_of(*cell)
        if arguments.cells and name not in arguments.cells:
            continue
        if name in results():
            print(f"{name}: already in {RESULTS.name}", flush=True)
            continue
        outcome = run_cell(*cell, arguments.runs, data)
        write_json(RESULTS, results() | {name: outcome}, indent=1)
        print(name, json.dumps(outcome), flush=True)


def results() -> dict[str, Any]:
    """What is in the file so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def run_cell(lam: float, sigma2: float, start: str, seed: int, runs: Path, data: Path) -> dict[str, Any]:
    """Train, search and judge one cell."""
    begun = time.perf_counter()
    classifier = in_channels_last(load_classifier("mnist-c"))
    model = train(lam, sigma2, start, seed, runs, data, classifier)
    images, labels = load_mnist("validation", data)
    searched = conditions(classifier, images[:SEARCH_IMAGES], labels[:SEARCH_IMAGES], runs)
    stem = name_of(lam, sigma2, start, seed).replace(" ", "-")
    tried = tune_chain(
        model,
        classifier,
        searched,
        search_for(sigma2),
        attacks=SEARCH_ATTACKS,
        checkpoint=runs / f"chains-{stem}.jsonl",
    )
    purifier = Purifier(model, tried[0].chain)
    held_out = conditions(classifier, images[-JUDGED_IMAGES:], labels[-JUDGED_IMAGES:], runs)
    correct = {}
    for name, (shown, truth) in held_out.items():
        with torch.no_grad():
            correct[name] = accuracy(classifier, purifier(shown, seed=1), truth)
    through = {
        name: attack(DefendedClassifier(purifier, classifier), images[-EXACT_IMAGES:], labels[-EXACT_IMAGES:])
        for name, attack in (("bpda", BPDA), ("exact", EXACT))
    }
    return {
        "lambda": lam, "sigma2": sigma2, "start": start, "seed": seed,
        "correct": correct, "n": JUDGED_IMAGES,
        "transferred": round(sum(correct[f"{a} {e:g}"] for a, e in CONDITIONS) / (len(CONDITIONS) * JUDGED_IMAGES), 5),
        **{name: {"majority_correct": int((~result.success).sum()), "n": EXACT_IMAGES,
                  "accuracy_per_query": round(1.0 - float(result.success_rate.mean()), 5)}
           for name, result in through.items()},
        "chain": tried[0].chain.to_dict(),
        "langevin_share": round(langevin_share(tried[0].chain.step_size, tried[0].chain.noise_scale, sigma2), 4),
        "trials": [result.to_json() for result in tried],
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def train(
    lam: float, sigma2: float, start: str, seed: int, runs: Path, data: Path, classifier: nn.Module, suffix: str = ""
) -> Autoencoder:
    """The autoencoder of a cell, or one for another classifier, which ``suffix`` names; resumes from checkpoints."""
    common: dict[str, Any] = {"sigma2": sigma2, "class_balanced": True, "batch_size": 128}
    pictures = load_mnist("train", data)
    initial = None
    if start == "dae":
        initial, _ = train_autoencoder(
            *pictures, checkpoint=runs / f"dae-{sigma2:g}.pt", progress=False, seed=0, **common, **START
        )
    model, _ = train_autoencoder(
        *pictures,
        classifier=classifier if lam > 0 else None,
        initial=initial,
        checkpoint=runs / f"sdae-{lam:g}-{sigma2:g}-{start}-{seed}{suffix}.pt",
        supervision=lam,
        seed=seed,
        **common,
        **(FROM_DAE if start == "dae" else FROM_SCRATCH),
    )
    return model


def conditions(classifier: nn.Module, images: Tensor, labels: Tensor, runs: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Clean images and those attacked against the bare classifier, by name."""
    found = {"clean": (images, labels)}
    for attack, epsilon in CONDITIONS:
        made = attacked_images(classifier, images, labels, attack, epsilon, seed=0, cache_dir=runs)
        found[f"{attack} {epsilon:g}"] = (made, labels)
    return found


def langevin_share(step_size: float, noise_scale: float, sigma2: float) -> float:
    """The chain's noise as a share of what Langevin dynamics has for its step, d = sqrt(2 a sigma^2)."""
    return noise_scale / math.sqrt(2.0 * step_size * sigma2)


if __name__ == "__main__":
    main()
