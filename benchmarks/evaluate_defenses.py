"""Accuracy of MALADE and of every rival on attacked digits, by attackers who do not know the defence and who do.

    python benchmarks/evaluate_defenses.py [--defenses a,b] [--images 1000] [--adaptive-images 1000] [--output FILE]

Columns: clean; FGSM and PGD made against the bare classifier (the attacker does not know the
defence); PGD with BPDA, and PGD through the exact gradient, both with fresh randomness at each step; for APuDAE its
paper's counter attacks A and B too. Counts are of images still classified correctly, by a majority of fresh queries
under the adaptive attacks.

An interrupted run resumes from --output, keeping every count, and from the attacks' own checkpoints in --cache; a run
with more images measures only the new ones. The adaptive attacks run each defence about a hundred times per image; on
Defense-GAN and DIP-INC that takes minutes per image, so run those with fewer. The table gives the number of images
where a figure has fewer than the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from defense_runs import accuracy_table, chosen, gone_on
from torch import Tensor, nn

from fastmalade import DefendedClassifier, Defense
from fastmalade.attacks import PGD, Attack, CounterAttackA, CounterAttackB
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.defenses import Apudae
from fastmalade.defenses.defended import GradientMode
from fastmalade.evaluation import accuracy, attacked_images
from fastmalade.evaluation.defenses import compared_defenses
from fastmalade.files import write_json
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier
from fastmalade.progress import progress_bar

SEED = 0
TRANSFERRED = (("fgsm", 0.1), ("fgsm", 0.3), ("pgd", 0.1), ("pgd", 0.2), ("pgd", 0.3))
TRANSFER_COLUMNS = {"clean": ("none", 0.0)} | {f"{name} {epsilon:g}": (name, epsilon) for name, epsilon in TRANSFERRED}
STEP_SIZE = 0.01
ADAPTIVE_EPSILON, COUNTER_EPSILON = 0.3, 0.1
BATCH = 100
Entry = dict[str, Any]
PAPERS = {
    "defense-gan": "000 Table 1, FGSM 0.3 made with a substitute model: 84.2 to 89.7",
    "magnet": "000 Table 1, the same: 90.3 to 97.9; 003 Table 2 at eps 0.1: FGSM 69, PGD 49",
    "apudae": "003 Table 2 at eps 0.1, n = 15, alpha = 0.01: clean 97.3, FGSM 96.4, PGD 95.1; direct 97.3, 93.4, 91.2",
    "inc": "004 Figure 3: FGSM on the paper's own classifier, a curve without printed figures",
}


def adaptive_attacks(defense: Defense, steps: int) -> dict[str, Attack]:
    """Attacks that know the defence, by column."""
    common: dict[str, Any] = {"norm": "linf", "step_size": STEP_SIZE, "seed": SEED, "steps": steps}
    modes: tuple[GradientMode, ...] = ("bpda", "unrolled") if defense.gradient == "unrolled" else ("bpda",)
    found: dict[str, Attack] = {
        f"pgd {ADAPTIVE_EPSILON:g} {mode}": PGD(**common, epsilon=ADAPTIVE_EPSILON, gradient=mode) for mode in modes
    }
    if isinstance(defense, Apudae):
        found[f"counter A {COUNTER_EPSILON:g}"] = CounterAttackA(**common, epsilon=COUNTER_EPSILON)
        found[f"counter B {COUNTER_EPSILON:g}"] = CounterAttackB(**common, epsilon=COUNTER_EPSILON)
    return found


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        classifier: stands behind every defence.
        images, labels: (n, 1, 28, 28) in [0, 1], and (n,).
        adaptive: how many of the first images meet the adaptive attacks.
        steps: of the adaptive attacks.
        columns: names of the columns to measure; all where None.
        cache: folder for attacked images and checkpoints.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    adaptive: int
    steps: int
    columns: Container[str] | None = None
    cache: Path | None = None

    def missing(self, column: str, n: int, wanted: int) -> bool:
        """Whether a column that has ``n`` images of ``wanted`` is to be measured."""
        return n < wanted and (self.columns is None or column in self.columns)


def measure(name: str, defense: Defense, plan: Plan, earlier: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Count one column after the other.

    Args:
        name: of the defence, in the names of checkpoints.
        defense: what is attacked, with the classifier of the plan.
        plan: what to measure.
        earlier: entries by column, of the first images in their "n"; the rest is measured.

    Yields:
        A column's name and its entry so far: correct answers out of how many images, in how many seconds. A column
        comes up each time it grows.
    """
    classifier, images, labels, cache = plan.classifier, plan.images, plan.labels, plan.cache
    nothing: Entry = {"correct": 0, "n": 0, "seconds": 0.0}
    for column, (attack, epsilon) in TRANSFER_COLUMNS.items():
        entry = earlier.get(column, nothing)
        if not plan.missing(column, entry["n"], len(images)):
            continue
        shown = images
        if attack != "none":
            shown = attacked_images(
                classifier, images, labels, attack, epsilon, step_size=STEP_SIZE, seed=SEED, cache_dir=cache
            )  # type: ignore[arg-type]
        for first in range(entry["n"], len(images), BATCH):
            part = slice(first, min(first + BATCH, len(images)))
            started = time.perf_counter()
            with torch.no_grad():
                purified = defense(shown[part], seed=SEED, sample_ids=range(part.start, part.stop))
            entry = _grown(entry, accuracy(classifier, purified, labels[part]), part.stop, started)
            yield column, entry
    model = DefendedClassifier(defense, classifier, gradient=defense.gradient).eval()
    for column, adaptive_attack in adaptive_attacks(defense, plan.steps).items():
        entry = earlier.get(column, nothing)
        if not plan.missing(column, entry["n"], plan.adaptive):
            continue
        part = slice(entry["n"], plan.adaptive)
        checkpoint = None
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            numbers = f"{part.stop}" if part.start == 0 else f"{part.start}-{part.stop}"
            checkpoint = cache / f"{name}-{column.replace(' ', '-')}-{numbers}.safetensors"
        started = time.perf_counter()
        result = adaptive_attack(
            model,
            images[part],
            labels[part],
            batch_size=BATCH,
            sample_ids=range(part.start, part.stop),
            checkpoint=checkpoint,
        )
        yield column, _grown(entry, int((~result.success).sum()), part.stop, started)


def _grown(entry: Entry, correct: int, n: int, started: float) -> Entry:
    """``entry`` with the images up to ``n``, of which ``correct`` more were."""
    seconds = round(entry["seconds"] + time.perf_counter() - started, 1)
    return {"correct": entry["correct"] + correct, "n": n, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defenses", default="", help="names, comma-separated; all by default")
    parser.add_argument("--columns", default="", help="columns of the table, comma-separated; all by default")
    parser.add_argument("--images", type=int, default=1000, help="digits for the attacks on the bare classifier")
    parser.add_argument("--adaptive-images", type=int, default=1000, help="number of them for the adaptive attacks")
    parser.add_argument("--steps", type=int, default=40, help="steps of the adaptive attacks, of 0.01 each")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/defenses-accuracy.json"))
    parser.add_argument("--cache", type=Path, default=Path("runs/attacked"))
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--print", action="store_true", help="only print the table of --output")
    arguments = parser.parse_args()
    protocol = {"steps": arguments.steps, "step_size": STEP_SIZE, "norm": "linf", "seed": SEED, "papers": PAPERS}
    state: dict[str, Any] = {"protocol": protocol, "results": {}}
    state = gone_on(parser, arguments.output, state, "protocol")
    if arguments.print:
        print(accuracy_table(state["results"]))
        return
    available = compared_defenses()
    wanted = chosen(parser, "--defenses", arguments.defenses, available) or list(available)
    known = {column for defense in available.values() for column in (*TRANSFER_COLUMNS, *adaptive_attacks(defense, 1))}
    columns = chosen(parser, "--columns", arguments.columns, sorted(known))
    images, labels = (part[: arguments.images] for part in load_mnist("test", find_data_dir(arguments.data)))
    plan = Plan(
        classifier=in_channels_last(load_classifier("mnist-c")),
        images=images,
        labels=labels,
        adaptive=min(arguments.adaptive_images, len(images)),
        steps=arguments.steps,
        columns=columns or None,
        cache=arguments.cache,
    )
    with progress_bar() as bar:
        task = bar.add_task("defences", total=len(wanted))
        for name in wanted:
            bar.update(task, description=name)
            entries = state["results"].setdefault(name, {})
            for column, entry in measure(name, available[name], plan, dict(entries)):
                entries[column] = entry
                write_json(arguments.output, state)
            bar.advance(task)
    print(accuracy_table(state["results"]))


if __name__ == "__main__":
    main()
