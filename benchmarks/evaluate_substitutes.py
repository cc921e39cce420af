"""Attacks that never differentiate the defence (004 sections 4.2.2 and 4.2.3), on defences shipped for MNIST.

    python benchmarks/evaluate_substitutes.py [--defenses malade,magnet,inc] [--output FILE]

Three attackers, each with FGSM and with BIM of 20 steps: "bare" attacks classifier C as it is; "substitute" trains a
network of C's architecture on the defended classifier's answers; "combined" trains a network on the purifier's images
and attacks it together with C. The attackers' digits come from the training set, the judged ones are the first of the
test set. Counts are of digits fooled, among those that substitute and target both had right.

An interrupted run resumes from --output, keeping finished defences, and from the queries in --cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from defense_runs import chosen, gone_on, substitute_table
from torch import Tensor, nn

from fastmalade import DefendedClassifier, Defense
from fastmalade.attacks import FGSM, PGD, Attack
from fastmalade.attacks.substitute import (
    CombinedSubstitute,
    substitute_purifier,
    train_substitute_classifier,
    train_substitute_purifier,
)
from fastmalade.attacks.transfer import transfer_attack
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.evaluation.defenses import compared_defenses
from fastmalade.files import write_json
from fastmalade.models import build_classifier, in_channels_last
from fastmalade.models.registry import load_classifier

EPSILONS = (0.1, 0.2, 0.3)
BIM_STEPS = 20


def attacks() -> dict[str, Attack]:
    """By column. BIM's step takes it to the border in half of its steps; Figure 5 of 004 gives no step."""
    made: dict[str, Attack] = {f"fgsm {epsilon:g}": FGSM(epsilon=epsilon) for epsilon in EPSILONS}
    for epsilon in EPSILONS:
        step = 2 * epsilon / BIM_STEPS
        made[f"bim {epsilon:g}"] = PGD(epsilon=epsilon, steps=BIM_STEPS, step_size=step, random_start=False)
    return made


@dataclass(frozen=True)
class Training:
    """How the attackers train their models.

    Attributes:
        purified: digits shown to the purifier for the combined attack; the substitute starts from a sixteenth of them.
        rounds: of the substitute's training.
        epochs: of each round of the substitute's training.
        combined_epochs: of the training for the combined attack.
        cache: folder for what was asked and answered.
    """

    purified: int
    rounds: int
    epochs: int
    combined_epochs: int
    cache: Path


def substitutes(
    name: str, defense: Defense, classifier: nn.Module, asked: Tensor, training: Training
) -> dict[str, Callable[[], nn.Module]]:
    """The attackers' models by name, each made when it is called.

    Args:
        name: of the defence, in the names of checkpoints.
        defense, classifier: the parts of the target.
        asked: the attackers' digits, (n, 1, 28, 28).
        training: how the models are trained.
    """
    target = DefendedClassifier(defense, classifier, gradient="bpda").eval()

    def trained() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = in_channels_last(build_classifier("C"))
        train_substitute_classifier(
            model,
            target,
            asked[: max(training.purified // 16, 1)],
            inner_attack=FGSM(epsilon=0.2),
            rounds=training.rounds,
            epochs=training.epochs,
            checkpoint=training.cache / f"{name}-substitute.safetensors",
        )
        return model

    def combined() -> nn.Module:
        model = substitute_purifier(defense, width=16, channels=1)
        train_substitute_purifier(
            model,
            defense,
            asked[: training.purified],
            epochs=training.combined_epochs,
            checkpoint=training.cache / f"{name}-combined.safetensors",
        )
        return CombinedSubstitute(model, classifier)

    return {"bare": lambda: classifier, "substitute": trained, "combined": combined}


def measure(
    substitute: nn.Module, defense: Defense, classifier: nn.Module, images: Tensor, labels: Tensor
) -> dict[str, dict[str, int]]:
    """Per attack: digits that both had right before, and how many of these fool the substitute and the target."""
    target = DefendedClassifier(defense, classifier, gradient="bpda").eval()
    found = {}
    for column, attack in attacks().items():
        result = transfer_attack(attack, substitute, target, images, labels)
        counts = {"valid": result.valid, "fooled": result.valid & result.fooled}
        counts["fooled_substitute"] = result.valid & result.fooled_substitute
        found[column] = {key: int(value.sum()) for key, value in counts.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defenses", default="malade,magnet,inc", help="names, comma-separated")
    parser.add_argument("--images", type=int, default=200, help="test digits that are judged")
    parser.add_argument("--purified", type=int, default=2400, help="training digits shown to the purifier")
    parser.add_argument("--rounds", type=int, default=6, help="of the substitute's training; queries double each time")
    parser.add_argument("--epochs", type=int, default=10, help="of each round of the substitute's training")
    parser.add_argument("--combined-epochs", type=int, default=60, help="of the training for the combined attack")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/substitutes.json"))
    parser.add_argument("--cache", type=Path, default=Path("runs/substitutes"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("images", "purified", "rounds", "epochs", "combined_epochs")}
    state: dict[str, Any] = {"settings": settings, "torch": torch.__version__, "results": {}}
    state = gone_on(parser, arguments.output, state, "settings")
    available = compared_defenses()
    wanted = chosen(parser, "--defenses", arguments.defenses, available)
    folder = find_data_dir(arguments.data)
    asked, _ = load_mnist("train", folder)
    images, labels = (part[: arguments.images] for part in load_mnist("test", folder))
    classifier = in_channels_last(load_classifier("mnist-c"))
    training = Training(
        purified=arguments.purified,
        rounds=arguments.rounds,
        epochs=arguments.epochs,
        combined_epochs=arguments.combined_epochs,
        cache=arguments.cache,
    )
    for name in wanted:
        entries = state["results"].setdefault(name, {})
        models = substitutes(name, available[name], classifier, asked, training)
        for attacker, made in models.items():
            if attacker in entries:
                continue
            started = time.perf_counter()
            columns = measure(made(), available[name], classifier, images, labels)
            entries[attacker] = {"seconds": round(time.perf_counter() - started, 1), "attacks": columns}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.output, state)
    print(substitute_table(state["results"]))


if __name__ == "__main__":
    main()
