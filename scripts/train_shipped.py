"""Train the models that ship with the package: mnist-c, mala-mnist, malade-mnist, with a card for each.

    python scripts/train_shipped.py [--stage classifier|mala|malade|others|all] [--runs runs] [--data DIR]

others: malade-mnist-a, -b and -d, sDAEs for classifiers A, B and D (000, Tables 1 and 2), with the chain of
malade-mnist. These three classifiers are trained into --runs and do not ship: together they are larger than all else.
Each stage resumes from its checkpoints in --runs. A purifier's chain is searched on validation images only, under
attacks that know it; test images are read once, at the end of a stage, for the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import sweep_supervision as sweep

from fastmalade import Purifier, __version__
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.evaluation import accuracy, wilson_interval
from fastmalade.evaluation.tuning import TuningResult, tune_chain
from fastmalade.models import Autoencoder, in_channels_last
from fastmalade.models.registry import load_classifier, save_classifier
from fastmalade.training import TrainingReport, train_classifier

WEIGHTS = Path(__file__).parent.parent / "fastmalade" / "weights"
SEED = 0
CLASSIFIER = {"epochs": 6, "batch_size": 128, "learning_rate": 1e-3, "seed": SEED}
# Of the cells of benchmarks/sweep_supervision.py, whose training and first search for a chain this goes on from.
SIGMA2 = 0.15
SUPERVISION = {"mala-mnist": 0.0, "malade-mnist": 10.0}
TITLES = {
    "mala-mnist": "DAE (paper 000, eq. 5), for MALA on MNIST",
    "malade-mnist": "sDAE (paper 000, eq. 8) for classifier C, MNIST",
}
OTHERS = ("A", "B", "D")
TUNING_IMAGES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("classifier", "mala", "malade", "others", "all"), default="all")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    WEIGHTS.mkdir(exist_ok=True)
    data = find_data_dir(arguments.data)
    if arguments.stage in ("classifier", "all"):
        classifier_stage(arguments.runs, data)
    for stage in ("mala", "malade"):
        if arguments.stage in (stage, "all"):
            purifier_stage(f"{stage}-mnist", arguments.runs, data)
    if arguments.stage in ("others", "all"):
        for name in OTHERS:
            other_stage(name, arguments.runs, data)


def classifier_stage(runs: Path, data: Path) -> None:
    """Classifier C, supervised by labels alone."""
    model, report = train_classifier(
        "C",
        *load_mnist("train", data),
        validation=load_mnist("validation", data),
        checkpoint=runs / "mnist-c.pt",
        num_classes=10,
        **CLASSIFIER,  # type: ignore[arg-type]
    )
    facts = training_facts(data, report)
    images, labels = load_mnist("test", data)
    facts["test_accuracy"] = proportion(accuracy(model, images, labels), len(labels))
    # Rounding the weights to float16 halves the file; accuracy is measured on the rounded weights below.
    save_classifier(model, WEIGHTS / "mnist-c.safetensors", training=facts, dtype="float16")
    stored = load_classifier("mnist-c")
    facts["test_accuracy_stored"] = proportion(accuracy(stored, images, labels), len(labels))
    save_classifier(model, WEIGHTS / "mnist-c.safetensors", training=facts, dtype="float16")
    write_card("mnist-c", "Classifier C (paper 000, Table 7) for MNIST, stored as float16", facts)


def purifier_stage(name: str, runs: Path, data: Path) -> None:
    """An autoencoder of the sweep, with a chain from a longer search."""
    classifier = in_channels_last(load_classifier("mnist-c"))
    weight = SUPERVISION[name]
    model = sweep.train(weight, SIGMA2, "dae", SEED, runs, data, classifier)
    begun = time.perf_counter()
    tried = search_chain(name, model, classifier, runs, data)
    best = tried[0]
    facts = data_facts(data) | {
        "settings": sweep_settings(weight),
        "tuning": {
            "images": f"first {TUNING_IMAGES} of the validation split",
            "validation_accuracies": best.accuracies,
            "attacks": {name: attack.settings() for name, attack in sweep.SEARCH_ATTACKS.items()},
            "settings_judged_on_all_images": sum(result.stage == "full" for result in tried),
            "seconds": round(time.perf_counter() - begun, 1),
        },
    }  # fmt: skip
    purifier = Purifier(model, best.chain)
    images, labels = load_mnist("test", data)
    with torch.no_grad():
        purified = purifier(images, seed=SEED)
    facts["test_accuracy_clean_purified"] = proportion(accuracy(classifier, purified, labels), len(labels))
    facts["chain"] = best.chain.to_dict()
    purifier.save_pretrained(WEIGHTS / f"{name}.safetensors", training=facts)
    write_card(name, TITLES[name], facts)


def sweep_settings(weight: float) -> dict[str, object]:
    """How the sweep trains an autoencoder with a supervised term of this weight."""
    common = {"sigma2": SIGMA2, "supervision": weight, "class_balanced": True, "batch_size": 128, "seed": SEED}
    return common | {"dae": sweep.START, "from the dae": sweep.FROM_DAE}


def other_stage(name: str, runs: Path, data: Path) -> None:
    """Classifier A, B or D, and the sDAE for it."""
    path = runs / f"mnist-{name.lower()}.safetensors"
    if not path.exists():
        trained, report = train_classifier(
            name,
            *load_mnist("train", data),
            validation=load_mnist("validation", data),
            checkpoint=runs / f"mnist-{name.lower()}.pt",
            num_classes=10,
            **CLASSIFIER,  # type: ignore[arg-type]
        )
        save_classifier(trained, path, training=training_facts(data, report))
    classifier = in_channels_last(load_classifier(path))
    weight = SUPERVISION["malade-mnist"]
    model = sweep.train(weight, SIGMA2, "dae", SEED, runs, data, classifier, suffix=f"-{name.lower()}")
    images, labels = load_mnist("test", data)
    purifier = Purifier(model, Purifier.from_pretrained("malade-mnist").chain)
    with torch.no_grad():
        purified = purifier(images, seed=SEED)
    facts = data_facts(data) | {
        "settings": sweep_settings(weight),
        "classifier": f"{name}, trained by this script with the settings of mnist-c",
        "test_accuracy_bare": proportion(accuracy(classifier, images, labels), len(labels)),
        "test_accuracy_clean_purified": proportion(accuracy(classifier, purified, labels), len(labels)),
        "chain": purifier.chain.to_dict(),
    }  # fmt: skip
    file = f"malade-mnist-{name.lower()}"
    purifier.save_pretrained(WEIGHTS / f"{file}.safetensors", training=facts)
    write_card(file, f"sDAE (paper 000, eq. 8) for classifier {name}, MNIST, with the chain of malade-mnist", facts)


def search_chain(name: str, model: Autoencoder, classifier: nn.Module, runs: Path, data: Path) -> list[TuningResult]:
    """Chain settings for a model, best first, judged by the worst attack on validation images; resumes."""
    images, labels = (part[:TUNING_IMAGES] for part in load_mnist("validation", data))
    conditions = sweep.conditions(classifier, images, labels, runs)
    search = dataclasses.replace(
        sweep.search_for(SIGMA2), n_local=60, coarse_images=500, attacked_images=300, seed=SEED + 1
    )

    def show(done: int, total: int, result: TuningResult) -> None:
        shown = ", ".join(f"{k} {100 * v:.1f}" for k, v in result.accuracies.items())
        print(f"  {done}/{total} score {result.score:.4f}: {shown}  {result.chain}", flush=True)

    attacks, checkpoint = sweep.SEARCH_ATTACKS, runs / f"chains-{name}.jsonl"
    return tune_chain(model, classifier, conditions, search, attacks=attacks, checkpoint=checkpoint, progress=show)


def proportion(correct: int, n: int) -> dict[str, float]:
    """A count with its 95% interval, for headers and cards."""
    low, high = wilson_interval(correct, n)
    return {"correct": correct, "n": n, "low95": round(low, 5), "high95": round(high, 5)}


def training_facts(data: Path, report: TrainingReport) -> dict[str, object]:
    """What a header and a card tell about a training."""
    return data_facts(data) | {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in report.settings.items()},
        "validation": {k: v for k, v in report.final.items() if k not in ("epoch", "learning_rate")},
        "seconds": round(report.seconds, 1),
    }


def data_facts(data: Path) -> dict[str, object]:
    """What a header and a card tell about the data and the software."""
    return {
        "fastmalade": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "data": "MNIST, 50k train / 10k validation / 10k test",
        "data_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(data.glob("*ubyte*"))
        },
    }


LIMITS = """
Trained on MNIST alone. The chain was chosen under attacks that know it, and longer ones still find most: the README's
tables have them. malade-robust-mnist is a purifier trained under attack.
"""


def write_card(
    name: str, title: str, facts: dict[str, object], *, script: str = "train_shipped.py", limits: str = LIMITS
) -> None:
    """Model card: the facts of the file's header, readable."""
    lines = [
        f"# {name}",
        "",
        f"{title}.",
        "",
        f"Made by `python scripts/{script}`; licence Apache-2.0.",
        "",
    ]
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"## {key}", "", "| | |", "|---|---|"]
            lines += [f"| {k} | {json.dumps(v) if not isinstance(v, str) else v} |" for k, v in value.items()]
            lines.append("")
        else:
            lines += [f"- {key}: {value}", ""]
    lines += ["## Limits", "", *limits.strip().splitlines(), ""]
    (WEIGHTS / f"{name}.md").write_text("\n".join(lines))
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
