"""Train the models that ship with the package: mnist-c, mala-mnist, malade-mnist, with a card for each.

    python scripts/train_shipped.py [--stage classifier|mala|malade|all] [--runs runs] [--data DIR]

Each stage resumes from its checkpoint in --runs. A purifier's chain settings are searched on validation images only;
test images are read once, at the end of a stage, for the card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

import torch
from torch import nn

from fastmalade import Purifier, __version__
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.evaluation import accuracy, attacked_images, wilson_interval
from fastmalade.evaluation.tuning import ChainSearch, TuningResult, tune_chain
from fastmalade.models import Autoencoder, in_channels_last
from fastmalade.models.registry import load_classifier, save_classifier
from fastmalade.training import TrainingReport, train_autoencoder, train_classifier

WEIGHTS = Path(__file__).parent.parent / "fastmalade" / "weights"
SEED = 0
CLASSIFIER = {"epochs": 6, "batch_size": 128, "learning_rate": 1e-3, "seed": SEED}
DAE = {"epochs": 40, "batch_size": 128, "learning_rate": 1e-2, "sigma2": 0.07, "seed": SEED}
SDAE = {
    "epochs": 8,
    "batch_size": 128,
    "learning_rate": 3e-3,
    "sigma2": 0.07,
    "seed": SEED,
    "class_balanced": True,
}
TUNING_ATTACKS = (("pgd", 0.2), ("pgd", 0.3), ("fgsm", 0.3))
TUNING_IMAGES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("classifier", "mala", "malade", "all"), default="all")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    WEIGHTS.mkdir(exist_ok=True)
    stages = {"classifier": classifier_stage, "mala": mala_stage, "malade": malade_stage}
    for name, stage in stages.items():
        if arguments.stage in (name, "all"):
            stage(arguments.runs, find_data_dir(arguments.data))


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


def dae(runs: Path, data: Path) -> tuple[Autoencoder, TrainingReport]:
    """The unsupervised DAE; trained once, then read from its checkpoint."""
    return train_autoencoder(
        *load_mnist("train", data),
        validation=load_mnist("validation", data),
        checkpoint=runs / "mala-mnist.pt",
        **DAE,
    )


def mala_stage(runs: Path, data: Path) -> None:
    """The DAE with its chain."""
    model, report = dae(runs, data)
    _purifier_stage("mala-mnist", "DAE (paper 000, eq. 5), for MALA on MNIST", model, report, runs, data)


def malade_stage(runs: Path, data: Path) -> None:
    """The sDAE for classifier C, started from the DAE, with its chain."""
    start, dae_report = dae(runs, data)
    classifier = in_channels_last(load_classifier("mnist-c"))
    model, report = train_autoencoder(
        *load_mnist("train", data),
        classifier=classifier,
        initial=start,
        validation=load_mnist("validation", data),
        checkpoint=runs / "malade-mnist.pt",
        **SDAE,
    )
    report.settings["initial"] = f"mala-mnist ({dae_report.settings['epochs']} epochs)"
    _purifier_stage("malade-mnist", "sDAE (paper 000, eq. 8) for classifier C, MNIST", model, report, runs, data)


def _purifier_stage(name: str, title: str, model: Autoencoder, report: TrainingReport, runs: Path, data: Path) -> None:
    classifier = in_channels_last(load_classifier("mnist-c"))
    start = time.perf_counter()
    tried = search_chain(model, classifier, runs, data)
    best = tried[0]
    facts = training_facts(data, report)
    facts["tuning"] = {
        "images": f"first {TUNING_IMAGES} of the validation split",
        "validation_accuracies": best.accuracies,
        "settings_judged_on_all_images": sum(result.stage == "full" for result in tried),
        "seconds": round(time.perf_counter() - start, 1),
    }
    purifier = Purifier(model, best.chain)
    images, labels = load_mnist("test", data)
    with torch.no_grad():
        purified = purifier(images, seed=SEED)
    facts["test_accuracy_clean_purified"] = proportion(accuracy(classifier, purified, labels), len(labels))
    facts["chain"] = best.chain.to_dict()
    purifier.save_pretrained(WEIGHTS / f"{name}.safetensors", training=facts)
    write_card(name, title, facts)


def search_chain(model: Autoencoder, classifier: nn.Module, runs: Path, data: Path) -> list[TuningResult]:
    """Chain settings for a model, best first, judged on clean and attacked validation images."""
    images, labels = (part[:TUNING_IMAGES] for part in load_mnist("validation", data))
    conditions = {"clean": (images, labels)}
    for attack, epsilon in TUNING_ATTACKS:
        print(f"attacking {len(images)} validation images: {attack}, eps {epsilon:g}", flush=True)
        made = attacked_images(classifier, images, labels, attack, epsilon, seed=SEED, cache_dir=runs)
        conditions[f"{attack} {epsilon:g}"] = (made, labels)

    def show(done: int, total: int, result: TuningResult) -> None:
        shown = ", ".join(f"{k} {100 * v:.1f}" for k, v in result.accuracies.items())
        print(f"  {done}/{total} score {result.score:.4f}: {shown}  {result.chain}", flush=True)

    return tune_chain(model, classifier, conditions, ChainSearch(seed=SEED), progress=show)


def proportion(correct: int, n: int) -> dict[str, float]:
    """A count with its 95% interval, for headers and cards."""
    low, high = wilson_interval(correct, n)
    return {"correct": correct, "n": n, "low95": round(low, 5), "high95": round(high, 5)}


def training_facts(data: Path, report: TrainingReport) -> dict[str, object]:
    """What a header and a card tell about a training."""
    return {
        "fastmalade": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "data": "MNIST, 50k train / 10k validation / 10k test",
        "data_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(data.glob("*ubyte*"))
        },
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in report.settings.items()},
        "validation": {k: v for k, v in report.final.items() if k not in ("epoch", "learning_rate")},
        "seconds": round(report.seconds, 1),
    }


LIMITS = """
Trained on MNIST alone. Chain settings were chosen under attacks on the bare classifier; attacks that
know the purifier and differentiate through its steps are far stronger. The README's tables show both.
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
