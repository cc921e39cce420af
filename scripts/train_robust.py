"""Train the adversarially trained models that ship with the package, with a card for each.

    python scripts/train_robust.py [--stage robust|joint|longer|madry|all] [--start FILE] [--runs runs] [--data DIR]

robust: malade-robust-mnist, a purifier trained through its chain, classifier C as it is. joint: malade-joint-mnist and
mnist-c-joint, both trained. longer: that pair trained on, from the files that the stage before wrote. madry:
mnist-c-madry, classifier C trained on attacked images without any purifier. All but longer start from shipped models:
classifier C, and the purifier --start. Each training resumes from its checkpoint in --runs.
Validation images alone are read here; robustness on test images is measured by benchmarks/evaluate_shipped.py, and
--cards writes it into the cards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import train_shipped as shipped

from fastmalade import Purifier
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier, save_classifier
from fastmalade.pretrained import read_header, resolve_path
from fastmalade.training import train_classifier, train_purifier

ROBUSTNESS = Path(__file__).parent.parent / "benchmarks" / "results" / "robustness.json"
THROUGH_THE_CHAIN: dict[str, Any] = {
    "epochs": 4, "batch_size": 64, "learning_rate": 1e-3, "attack_steps": 8, "seed": 0, "attacked_validation": 300,
}  # fmt: skip
LONGER: dict[str, Any] = THROUGH_THE_CHAIN | {"epochs": 12, "classifier_rate": 1.0, "ramp": 0.0, "seed": 1}
VALIDATION_IMAGES = 2000
MADRY: dict[str, Any] = {
    "epochs": 6, "batch_size": 64, "learning_rate": 1e-3, "attack_steps": 8, "epsilon": 0.3, "seed": 0,
}  # fmt: skip
STAGES = ("robust", "joint", "longer", "madry")
TITLES = {
    "malade-robust-mnist": "Purifier trained through its chain under attack, for classifier C as it is, MNIST",
    "malade-joint-mnist": "Purifier trained through its chain under attack together with mnist-c-joint, MNIST",
    "mnist-c-joint": "Classifier C (paper 000, Table 7) trained together with malade-joint-mnist, stored as float16",
    "mnist-c-madry": "Classifier C (paper 000, Table 7) trained on attacked images (Madry et al. 2018), as float16",
}
PAIRS = {
    "malade-robust-mnist": "malade-robust-mnist + mnist-c",
    "malade-joint-mnist": "malade-joint-mnist + mnist-c-joint",
    "mnist-c-joint": "malade-joint-mnist + mnist-c-joint",
    "mnist-c-madry": "mnist-c-madry",
}
LIMITS = """
Trained on MNIST alone, for perturbations of up to 0.3 in Linf; outside that ball nothing is promised. The table above
has the accuracy under attacks that know everything but the noise; docs/training.md has all of them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--start", default="malade-mnist", help="purifier to start from, a shipped name or a file")
    parser.add_argument("--cards", action="store_true", help="write the cards again from what has been measured")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.cards:
        for name in TITLES:
            if (shipped.WEIGHTS / f"{name}.safetensors").exists():
                card(name)
        return
    keep_freed_memory()
    torch.set_num_threads(1)  # the recorded runs: more threads round differently
    data = find_data_dir(arguments.data)
    for stage in STAGES:
        if arguments.stage not in ("all", stage):
            continue
        if stage == "madry":
            madry_stage(arguments.runs, data)
        else:
            chain_stage(stage, arguments.start, arguments.runs, data)


def chain_stage(stage: str, start: str, runs: Path, data: Path) -> None:
    """A purifier, or both, trained through the chain."""
    joint, longer, name = stage != "robust", stage == "longer", f"malade-{stage}-mnist"
    from_classifier = "mnist-c"
    if longer:
        name = start = "malade-joint-mnist"
        from_classifier = "mnist-c-joint"
    purifier, classifier, report = train_purifier(
        Purifier.from_pretrained(start),
        in_channels_last(load_classifier(from_classifier)),
        *load_mnist("train", data),
        train_classifier=joint,
        validation=tuple(part[:VALIDATION_IMAGES] for part in load_mnist("validation", data)),  # type: ignore[arg-type]
        checkpoint=runs / f"{name}{'-longer' if longer else ''}.pt",
        **(LONGER if longer else THROUGH_THE_CHAIN),
    )
    facts = shipped.training_facts(data, report) | {"history": report.history}
    facts["kept"] = max(report.history, key=lambda epoch: epoch["validation_attacked_accuracy"])
    facts["initial"] = {
        "classifier": from_classifier,
        "purifier": start,
        "sha256": hashlib.sha256(resolve_path(start).read_bytes()).hexdigest(),
    }
    if longer:
        facts["before"] = read_header(resolve_path(start))["training"]
    purifier.save_pretrained(shipped.WEIGHTS / f"{name}.safetensors", training=facts)
    card(name)
    if joint:
        save_classifier(classifier, shipped.WEIGHTS / "mnist-c-joint.safetensors", training=facts, dtype="float16")
        card("mnist-c-joint")


def madry_stage(runs: Path, data: Path) -> None:
    """Classifier C on attacked images."""
    model, report = train_classifier(
        "C",
        *load_mnist("train", data),
        adversarial="pgd",
        initial=load_classifier("mnist-c"),
        validation=load_mnist("validation", data),
        checkpoint=runs / "mnist-c-madry.pt",
        num_classes=10,
        **MADRY,
    )
    facts = shipped.training_facts(data, report) | {"history": report.history}
    save_classifier(model, shipped.WEIGHTS / "mnist-c-madry.safetensors", training=facts, dtype="float16")
    card("mnist-c-madry")


def card(name: str) -> None:
    """The card of a model from its file's header and the measured robustness of its pair."""
    facts = dict(read_header(shipped.WEIGHTS / f"{name}.safetensors")["training"])
    measured = json.loads(ROBUSTNESS.read_text()).get(PAIRS[name], {}) if ROBUSTNESS.exists() else {}
    rows = {}
    for column, found in measured.items():
        for part, entry in found.items() if column == "transferred" else [(column, found)]:
            if isinstance(entry, dict) and "correct" in entry:
                title = f"transferred {part}" if column == "transferred" else part
                rows[title] = f"{entry['correct']} of {entry['n']}, 95% [{entry['low95']}, {entry['high95']}]"
    facts[f"test digits right, {PAIRS[name]}"] = rows or "not measured yet"
    shipped.write_card(name, TITLES[name], facts, script="train_robust.py", limits=LIMITS)


if __name__ == "__main__":
    main()
