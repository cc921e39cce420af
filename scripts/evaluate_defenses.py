"""Accuracy of MALADE and of every rival on attacked digits, by the papers' protocol and by the sound one.

    python scripts/evaluate_defenses.py [--images 1000] [--defenses a,b] [--output results.json] [--cache DIR]

Columns: clean; FGSM and PGD made against the bare classifier (the papers' protocol: the attacker does not know the
defence); PGD with BPDA, and PGD through the exact gradient, both with fresh randomness at each step. Counts are of
images still classified correctly. An interrupted run goes on from --output; attacked images are kept in --cache.

The adaptive attacks run each defence a hundred times per image, those on Defense-GAN and DIP-INC take hours on a CPU:
--defenses and --images choose less.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import DefendedClassifier, Defense
from fastmalade.attacks import PGD
from fastmalade.data import find_data_dir, load_mnist
from fastmalade.defenses import Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.evaluation import accuracy, transfer_table, wilson_interval
from fastmalade.files import replacing
from fastmalade.models import in_channels_last
from fastmalade.pretrained import load_classifier
from fastmalade.progress import progress_bar

SEED = 0
TRANSFERRED = (("fgsm", 0.1), ("fgsm", 0.3), ("pgd", 0.1), ("pgd", 0.2), ("pgd", 0.3))
ADAPTIVE = {"epsilon": 0.3, "norm": "linf", "step_size": 0.01, "seed": SEED}
BATCH = 100
PAPERS = {
    "defense-gan": "000 Table 1, FGSM 0.3 made with a substitute model: 84.2 to 89.7",
    "magnet": "000 Table 1, the same: 90.3 to 97.9; 003 Table 2 at eps 0.1: FGSM 69, PGD 49",
    "apudae": "003 Table 2 at eps 0.1, n = 15, alpha = 0.01: clean 97.3, FGSM 96.4, PGD 95.1; direct 97.3, 93.4, 91.2",
    "inc": "004 Figure 3: FGSM on a classifier of its own, a curve without printed figures",
}


def defenses() -> dict[str, Defense]:
    """What is compared, by name, with the settings that the papers print where they print any."""
    apudae = Apudae.from_pretrained("apudae-mnist")
    assert isinstance(apudae, Apudae)
    found: dict[str, Defense] = {
        "malade": Defense.from_pretrained("malade-mnist"),
        "magnet": MagNet.from_pretrained("magnet-mnist"),
        "defense-gan": DefenseGan.from_pretrained("defense-gan-mnist"),
        "inc": InvertAndClassify.from_pretrained("inc-mnist"),
        "autoencode": AutoencodeAndClassify.from_pretrained("autoencode-mnist"),
        "dip-inc": DeepPrior(n_steps=100).eval(),
    }
    for variant in ("direct", "A", "B", "C", "D", "E", "F", "G"):
        found[f"apudae-{variant}"] = Apudae(apudae.autoencoder, **(apudae.settings() | {"variant": variant})).eval()
    return found


def measure(
    name: str,
    defense: Defense,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Correct answers out of len(images) for each column, and the seconds that each took."""
    counts: dict[str, Any] = {"n": len(images)}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    rows = transfer_table(
        classifier, {name: lambda x: _purify(defense, x)}, images, labels, TRANSFERRED, seed=SEED, cache_dir=cache
    )
    for row in rows:
        counts["clean" if row.attack == "none" else f"{row.attack} {row.epsilon:g}"] = row.correct[name]
    seconds["transferred"] = time.perf_counter() - started
    model = DefendedClassifier(defense, classifier, gradient=defense.gradient).eval()
    modes = ("bpda", "unrolled") if defense.gradient == "unrolled" else ("bpda",)
    for mode in modes:
        started = time.perf_counter()
        attack = PGD(**ADAPTIVE, steps=steps, gradient=mode)  # type: ignore[arg-type]
        robust = 0
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            robust += int((~attack(model, x, y).success).sum())
        counts[f"pgd {ADAPTIVE['epsilon']} {mode}"] = robust
        seconds[mode] = time.perf_counter() - started
    return {"correct": counts, "seconds": {k: round(v, 1) for k, v in seconds.items()}}


def _purify(defense: Defense, images: Tensor) -> Tensor:
    parts = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        with torch.no_grad():
            parts.append(defense(part, seed=SEED, sample_ids=range(first, first + len(part))))
    return torch.cat(parts)


def table(results: dict[str, Any]) -> str:
    """The counts as percentages with 95% intervals, in Markdown."""
    columns = list(dict.fromkeys(c for result in results.values() for c in result["correct"] if c != "n"))
    lines = [" | ".join(["| defence", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, result in results.items():
        entries = []
        for column in columns:
            correct, n = result["correct"].get(column), result["correct"]["n"]
            if correct is None:
                entries.append("")
                continue
            low, high = wilson_interval(correct, n)
            entries.append(f"{100 * correct / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(" | ".join([f"| {name}", *entries]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=40, help="steps of the adaptive attacks, of 0.01 each")
    parser.add_argument("--defenses", default="", help="names, comma-separated; all by default")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/defenses-accuracy.json"))
    parser.add_argument("--cache", type=Path, default=Path("runs/attacked"))
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    images, labels = (part[: arguments.images] for part in load_mnist("test", find_data_dir(arguments.data)))
    classifier = in_channels_last(load_classifier("mnist-c"))
    protocol = {"images": len(images), "steps": arguments.steps, "adaptive": ADAPTIVE, "seed": SEED, "papers": PAPERS}
    state: dict[str, Any] = {"protocol": protocol, "bare": accuracy(classifier, images, labels), "results": {}}
    if arguments.output.exists():
        earlier = json.loads(arguments.output.read_text(encoding="utf-8"))
        if earlier["protocol"] != protocol:
            parser.error(f"{arguments.output}: expected a result of the same protocol to go on from; name another file")
        state = earlier
    available = defenses()
    wanted = [name for name in arguments.defenses.split(",") if name] or list(available)
    unknown = sorted(set(wanted) - set(available))
    if unknown:
        parser.error(f"--defenses: expected any of {', '.join(available)}, got {', '.join(unknown)}")
    with progress_bar() as bar:
        task = bar.add_task("defences", total=len(wanted))
        for name in wanted:
            bar.update(task, description=name)
            if name not in state["results"]:
                state["results"][name] = measure(
                    name, available[name], classifier, images, labels, steps=arguments.steps, cache=arguments.cache
                )
                with replacing(arguments.output) as partial:
                    partial.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            bar.advance(task)
    print(table(state["results"]))


if __name__ == "__main__":
    main()
