"""Robustness of the shipped MNIST pairs of purifier and classifier, by what the attacker knows; read by cards and docs.

    python benchmarks/evaluate_shipped.py [--pairs A B] [--columns a b] [--images 1000] [--runs runs] [--data DIR]

Columns: clean and transferred images (10,000; a single query each); then, on the first --images test digits, attacks
that know everything: BPDA with EOT, the exact gradient, the same with the noise of the defence known in advance and
with the noise switched off, at eps 0.4 and in L2, Square and AutoAttack-rand from their library. Counts are of images
that most of nine fresh queries still get right. Attacks work on blocks of 250 digits and keep their state in --runs;
what benchmarks/results/robustness.json has already is not run again, so that a column grows over several runs, and
several processes may work at different pairs or columns.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import DefendedClassifier, Purifier
from fastmalade.attacks import PGD, Attack, autoattack_rand
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.evaluation import accuracy, attacked_images, wilson_interval
from fastmalade.files import write_json
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier
from fastmalade.suites import SquareSpec, load_suite
from fastmalade.suites.black_box import square
from fastmalade.suites.subject import KnownNoise, Subject

RESULTS = Path(__file__).parent / "results" / "robustness.json"
BATCH = 125
BLOCK = 250  # of test digits, between two writings of the results
TRANSFERRED = (("pgd", 0.2), ("pgd", 0.3), ("pgd", 0.4), ("fgsm", 0.3))
STRONG = PGD(
    epsilon=0.3, steps=100, step_size=0.03, schedule="cosine", eot=16, restarts=5, early_stop=True, gradient="unrolled"
)
AUTOATTACK_IMAGES = 200
SQUARE = SquareSpec(200, 1000)


@dataclass(frozen=True)
class Pair:
    """A purifier (or none) before a classifier, both by their shipped names."""

    purifier: str | None
    classifier: str

    @property
    def name(self) -> str:
        """In the file of results."""
        return self.classifier if self.purifier is None else f"{self.purifier} + {self.classifier}"


PAIRS = (
    Pair("malade-joint-mnist", "mnist-c-joint"),
    Pair("malade-robust-mnist", "mnist-c"),
    Pair("malade-mnist", "mnist-c"),
    Pair(None, "mnist-c-madry"),
    Pair("malade-mnist", "mnist-c-madry"),
    Pair("malade-robust-mnist", "mnist-c-madry"),
    Pair(None, "mnist-c"),
)
ATTACKS: dict[str, Attack] = {
    "exact": STRONG,
    "bpda": dataclasses.replace(STRONG, gradient="bpda", restarts=1),
    "exact eps 0.4": dataclasses.replace(STRONG, epsilon=0.4, step_size=0.04, restarts=1),
    "exact l2 4": dataclasses.replace(STRONG, epsilon=4.0, norm="l2", step_size=0.4, restarts=1),
    "known noise": dataclasses.replace(STRONG, eot=1, restarts=1, early_stop=False),
    "no noise": dataclasses.replace(STRONG, eot=1, restarts=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", help="names, as in the results; those whose files exist by default")
    parser.add_argument("--columns", nargs="*", help="clean, transferred, autoattack, square or names of attacks")
    parser.add_argument("--images", type=int, default=1000, help="test digits under attacks that know the defence")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    keep_freed_memory()
    images, labels = load_mnist("test", find_data_dir(arguments.data))
    for pair in PAIRS:
        if arguments.pairs and pair.name not in arguments.pairs:
            continue
        try:
            run = Run(pair, images, labels, arguments.runs)
        except FileNotFoundError as missing:
            print(f"{pair.name}: {missing}", flush=True)
            continue
        for column in run.columns():
            if arguments.columns and column not in arguments.columns:
                continue
            done = results().get(pair.name, {}).get(column)
            if column in ATTACKS:
                for first in range(0 if done is None else done["n"], arguments.images, BLOCK):
                    record(run, column, range(first, min(first + BLOCK, arguments.images)))
            elif done is None:
                record(run, column, None)


def record(run: Run, column: str, block: range | None) -> None:
    """Measure a column, or a block of it, and write it."""
    begun = time.perf_counter()
    found = run.attack(column, block) if block is not None else getattr(run, column)()
    found["seconds"] = round(time.perf_counter() - begun, 1)
    with results_to_change() as known:
        columns = known.setdefault(run.pair.name, {})
        columns[column] = found if block is None else with_block(columns.get(column), found)
    print(f"{run.pair.name}: {column}: {json.dumps(found)}", flush=True)


def with_block(column: dict[str, Any] | None, block: dict[str, Any]) -> dict[str, Any]:
    """A column with the results of one more block: totals first, then the blocks."""
    settings, warned = block.pop("settings"), block.pop("warnings")
    blocks = [*(column["blocks"] if column else []), block]
    n = sum(each["n"] for each in blocks)
    means = {
        name: round(sum(each[name] * each["n"] for each in blocks) / n, 5)
        for name in ("accuracy_per_query", "gradients_per_image")
    }
    found = counted(sum(each["correct"] for each in blocks), n) | means
    found |= {"settings": settings, "warnings": sorted({*warned, *(column["warnings"] if column else [])})}
    return found | {"seconds": round(sum(each["seconds"] for each in blocks), 1), "blocks": blocks}


def results() -> dict[str, Any]:
    """What is in the file so far."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


@contextmanager
def results_to_change() -> Iterator[dict[str, Any]]:
    """What is in the file so far, written back at the end; another process waits meanwhile."""
    with (RESULTS.parent / ".robustness.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = results()
        yield known
        write_json(RESULTS, known)


class Run:
    """The measurements of one pair."""

    def __init__(self, pair: Pair, images: Tensor, labels: Tensor, runs: Path) -> None:
        self.pair, self.images, self.labels, self.runs = pair, images, labels, runs
        self.classifier = in_channels_last(load_classifier(pair.classifier))
        self.purifier = None if pair.purifier is None else Purifier.from_pretrained(pair.purifier)

    def columns(self) -> list[str]:
        """What can be measured: attacks, and methods of this class."""
        if self.purifier is None:  # nothing is random, and nothing is replaced by an identity
            return ["clean", "transferred", *(name for name in ATTACKS if name.startswith("exact"))]
        return ["clean", "transferred", *ATTACKS, "autoattack", "square"]

    def clean(self) -> dict[str, Any]:
        """Single queries of clean images."""
        return counted(self.correct(self.images), len(self.images))

    def transferred(self) -> dict[str, Any]:
        """Single queries of images that were attacked against the bare classifier."""
        found = {}
        for attack, epsilon in TRANSFERRED:
            made = attacked_images(
                self.classifier, self.images, self.labels, attack, epsilon, seed=0, cache_dir=self.runs
            )  # fmt: skip
            found[f"{attack} {epsilon:g}"] = counted(self.correct(made), len(made))
        return found

    def correct(self, images: Tensor) -> int:
        """Images that one query gets right."""
        with torch.no_grad():
            shown = images if self.purifier is None else self.purifier(images, seed=0)
        return accuracy(self.classifier, shown, self.labels)

    def attack(self, name: str, block: range) -> dict[str, Any]:
        """An attack that knows the pair, on a block of digits; ``name`` says what else it knows, or is switched off."""
        attack = ATTACKS[name]
        images, labels = self.images[block.start : block.stop], self.labels[block.start : block.stop]
        target: nn.Module = self.classifier
        if self.purifier is None:
            attack = dataclasses.replace(attack, eot=1, judge_chains=1)
        else:
            if name == "known noise":
                target = KnownNoise(DefendedClassifier(self.purifier, self.classifier))
            else:
                chain = self.purifier.chain.replace(noise_scale=0.0) if name == "no noise" else self.purifier.chain
                target = DefendedClassifier(Purifier(self.purifier.autoencoder, chain), self.classifier)
            if name in ("known noise", "no noise"):
                attack = dataclasses.replace(attack, judge_chains=1)
        file = f"{self.pair.name}-{name}-{block.start}-{block.stop}.safetensors".replace(" ", "-")
        progress = said(f"{self.pair.name} {name} from digit {block.start}")
        result = attack(
            target,
            images,
            labels,
            batch_size=BATCH,
            sample_ids=list(block),
            checkpoint=self.runs / file,
            progress=progress,
        )
        return {
            "first": block.start,
            "n": len(images),
            "correct": int((~result.success).sum()),
            "accuracy_per_query": round(1.0 - float(result.success_rate.mean()), 5),
            "gradients_per_image": round(float(result.gradients.double().mean()), 1),
            "judged": result.judged,
            "settings": result.settings,
            "warnings": list(result.warnings),
        }

    def autoattack(self) -> dict[str, Any]:
        """AutoAttack-rand, with the settings of its authors."""
        assert self.purifier is not None
        images, labels = self.images[:AUTOATTACK_IMAGES], self.labels[:AUTOATTACK_IMAGES]
        target = DefendedClassifier(self.purifier, self.classifier)
        report = autoattack_rand(target, images, labels, epsilon=0.3, batch_size=BATCH)
        found = counted(int((~report.success).sum()), len(images))
        return found | {"library_accuracy": report.library_accuracy, "judged": report.judged}

    def square(self) -> dict[str, Any]:
        """Square (Andriushchenko et al. 2020) from ART, 1,000 queries an image, judged by fresh noise."""
        images, labels = self.images[: SQUARE.images], self.labels[: SQUARE.images]
        assert self.purifier is not None
        subject = Subject(DefendedClassifier(self.purifier, self.classifier), images)
        made = square(subject, images, labels, load_suite("sound"), SQUARE, seed=0)
        share = subject.fooled_share(made, labels, 9, 1, torch.arange(len(images)))
        found = counted(int((share <= 0.5).sum()), len(images))
        return found | {"judged": "majority of 9 queries with fresh noise", "queries": SQUARE.queries}


def said(name: str) -> Callable[[int, int], None]:
    """Progress as a line a minute: these runs take hours, mostly without a terminal."""
    last = [time.monotonic()]

    def say(done: int, total: int) -> None:
        if time.monotonic() - last[0] >= 60.0:
            last[0] = time.monotonic()
            print(f"{name}: step {done} of {total}", flush=True)

    return say


def counted(correct: int, n: int) -> dict[str, Any]:
    """A count with its 95% interval."""
    low, high = wilson_interval(correct, n)
    return {"correct": correct, "n": n, "low95": round(low, 4), "high95": round(high, 4)}


if __name__ == "__main__":
    main()
