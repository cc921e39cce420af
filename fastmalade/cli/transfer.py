"""``fastmalade transfer``: attacks made on the bare classifier, by an attacker who does not know the defence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from fastmalade.cli import tables
from fastmalade.cli.errors import CliError, exit_codes
from fastmalade.cli.options import names
from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation.foolbox_attacks import AttackName
from fastmalade.files import write_json
from fastmalade.progress import progress_bar

DEFAULT_ATTACKS = "fgsm:0.1,fgsm:0.2,fgsm:0.3,pgd:0.1,pgd:0.2,pgd:0.3"


def transfer(
    models: Annotated[
        str, typer.Option(help="Purifiers, names or files, comma-separated.")
    ] = "mala-mnist,malade-mnist",
    classifier: Annotated[str, typer.Option(help="Classifier, a name or a file.")] = "mnist-c",
    attacks: Annotated[str, typer.Option(help="NAME:EPSILON pairs, comma-separated; fgsm or pgd.")] = DEFAULT_ATTACKS,
    split: Annotated[str, typer.Option(help="MNIST split: test or validation.")] = "test",
    images: Annotated[int | None, typer.Option(help="Use only the first images.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of PGD.")] = 40,
    step_size: Annotated[float, typer.Option(help="Length of a step of PGD.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the attacks and of the purifiers' noise.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the MNIST files.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Attacked images are kept here; an interrupted run goes on from them.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON too.")] = None,
) -> None:
    """Attack the bare classifier, purify, classify: accuracy with 95% intervals.

    The attacker of this protocol does not know the defence. The figures therefore say nothing about an attacker who
    does: see `fastmalade evaluate` and `fastmalade attack` for attacks through the purifier.
    """
    with exit_codes("interrupted; with --cache-dir the same command goes on", also=(ValueError,)):
        from fastmalade.data import load_mnist
        from fastmalade.evaluation import seeded, transfer_table
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier

        pairs = _parse_attacks(attacks)
        if split not in ("test", "validation"):
            raise CliError(f"--split: expected test or validation, got {split!r}")
        x, y = load_mnist(split, data_dir)  # type: ignore[arg-type]
        x, y = x[:images], y[:images]
        target = in_channels_last(load_classifier(classifier))
        purifiers = {name: seeded(Purifier.from_pretrained(name), seed) for name in names(models)}
        start = time.perf_counter()
        with progress_bar() as bar:
            tasks = {
                f"{name} {epsilon:g}": bar.add_task(f"{name} {epsilon:g}", total=len(x)) for name, epsilon in pairs
            }
            rows = transfer_table(
                target,
                purifiers,
                x,
                y,
                pairs,
                steps=steps,
                step_size=step_size,
                seed=seed,
                cache_dir=cache_dir,
                progress=lambda what, done, _: bar.update(tasks[what], completed=done),
            )
        title = f"MNIST {split}, {len(x)} images, attacks on the bare {classifier}, seed {seed}"
        Console(width=160).print(tables.transfer_table(rows, title, digits=2))
        if output is not None:
            payload = {
                "protocol": "transfer: attacks made against the bare classifier",
                "split": split,
                "images": len(x),
                "seed": seed,
                "pgd": {"steps": steps, "step_size": step_size, "random_start": True},
                "seconds": round(time.perf_counter() - start, 1),
                "rows": [{"attack": r.attack, "epsilon": r.epsilon, "n": r.n, "correct": r.correct} for r in rows],
            }
            write_json(output, payload, indent=2)


def _parse_attacks(text: str) -> list[tuple[AttackName, float]]:
    pairs: list[tuple[AttackName, float]] = []
    for item in names(text):
        name, _, epsilon = item.partition(":")
        try:
            radius = float(epsilon)
        except ValueError:
            radius = -1.0
        if name not in get_args(AttackName) or not radius >= 0:
            raise CliError(f"--attacks: expected {' or '.join(get_args(AttackName))}:EPSILON, got {item!r}")
        pairs.append((cast(AttackName, name), radius))
    return pairs
