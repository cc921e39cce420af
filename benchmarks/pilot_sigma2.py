"""Compare training noises sigma^2 by short trainings, judged on validation images under attacks on the bare classifier.

    python benchmarks/pilot_sigma2.py [--kind supervised|unsupervised|both] [--runs runs] [--data DIR]

An unsupervised pilot trains a DAE from the start; a supervised one trains the sDAE from the shipped DAE. Each chain is
searched as in scripts/train_shipped.py, with fewer settings. benchmarks/results/pilot-sigma2.json keeps each outcome;
pilots already in that file are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import train_shipped as shipped

from fastmalade import Purifier
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.files import write_json
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier
from fastmalade.training import train_autoencoder

RESULTS = Path(__file__).parent / "results" / "pilot-sigma2.json"
UNSUPERVISED = {"sigma2": (0.04, 0.07, 0.15, 0.3), "epochs": 4}
SUPERVISED = {"sigma2": (0.07, 0.15, 0.3), "epochs": 3}
SEARCH = {"n_random": 24, "n_local": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("supervised", "unsupervised", "both"), default="both")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    data = find_data_dir(arguments.data)
    for kind, plan in (("supervised", SUPERVISED), ("unsupervised", UNSUPERVISED)):
        if arguments.kind in (kind, "both"):
            for sigma2 in plan["sigma2"]:  # type: ignore[attr-defined]
                pilot(kind, sigma2, plan["epochs"], arguments.runs, data)  # type: ignore[arg-type]


def pilot(kind: str, sigma2: float, epochs: int, runs: Path, data: Path) -> None:
    """Train, search a chain, and add the outcome to the results; nothing where it is there already."""
    name = f"{kind} sigma2={sigma2:g} epochs={epochs}"
    done: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if name in done:
        print(f"{name}: already in {RESULTS.name}")
        return
    classifier = in_channels_last(load_classifier("mnist-c"))
    settings = dict(shipped.DAE, sigma2=sigma2, epochs=epochs)
    starts = [Purifier.from_pretrained("mala-mnist").chain]
    options: dict[str, Any] = {}
    if kind == "supervised":
        settings = dict(shipped.SDAE, sigma2=sigma2, epochs=epochs)
        options = {"classifier": classifier, "initial": Purifier.from_pretrained("mala-mnist").autoencoder}
    begun = time.perf_counter()
    model, report = train_autoencoder(
        *load_mnist("train", data),
        validation=load_mnist("validation", data),
        checkpoint=runs / f"pilot-{kind}-{sigma2:g}-{epochs}.pt",
        **options,
        **settings,
    )
    best = shipped.search_chain(model, classifier, runs, data, starts=starts, **SEARCH)[0]
    done[name] = {
        "validation": report.final,
        "accuracies": best.accuracies,
        "score": best.score,
        "chain": best.chain.to_dict(),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_json(RESULTS, done, indent=2)
    print(name, json.dumps(done[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
