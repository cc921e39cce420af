"""``fastmalade attack``: attacks that know the defence, and what is left of its accuracy."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastmalade.cli.digits import digits
from fastmalade.cli.errors import CliError, exit_codes
from fastmalade.cli.options import names
from fastmalade.cli.tables import whitebox_table
from fastmalade.files import write_json

DEFAULT_ATTACKS = "pgd:unrolled,pgd:bpda,pgd:blind"


def attack(
    model: Annotated[str, typer.Option(help="Purifier, a name or a file.")] = "malade-mnist",
    classifier: Annotated[str, typer.Option(help="Classifier, a name or a file.")] = "mnist-c",
    attacks: Annotated[
        str,
        typer.Option(
            help="NAME or NAME:GRADIENT, comma-separated. Names: fgsm, rfgsm, pgd, mim, rpgd, apudae-a, apudae-b. "
            "Gradients: unrolled, bpda, blind."
        ),
    ] = DEFAULT_ATTACKS,
    epsilon: Annotated[float, typer.Option(help="Radius of the ball, images in [0, 1].")] = 0.3,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    steps: Annotated[int, typer.Option(help="Steps of the iterative attacks.")] = 40,
    step_size: Annotated[
        float | None, typer.Option(help="Length of a step; by default 2.5 times the radius over the steps.")
    ] = None,
    eot: Annotated[int, typer.Option(help="Noise draws averaged for each gradient.")] = 10,
    restarts: Annotated[int, typer.Option(help="Restarts of the iterative attacks.")] = 1,
    judge_chains: Annotated[int, typer.Option(help="Queries with fresh noise that judge an image.")] = 9,
    split: Annotated[
        str, typer.Option(help="embedded (1,000 digits in the package), validation or test.")
    ] = "embedded",
    images: Annotated[int | None, typer.Option(help="Use this many images, spread evenly over the split.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images attacked at once.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the attacks and of the verdict.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the MNIST files.")] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="State of the runs is kept here; an interrupted command goes on from it.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON too.")] = None,
) -> None:
    """Attack a defended classifier through the gradient of your choice and judge it by noise the attack has not seen.

    Accuracy is that of one query of the defence, averaged over --judge-chains queries per image; "majority" counts the
    images that most queries get right, with a 95% interval. "cosine" tells whether the noise draws were enough: it
    compares the gradients of their two halves. "classifier" is the share of a gradient's time that the classifier alone
    takes.
    """
    message = "interrupted; with --checkpoint-dir the same command goes on"
    with exit_codes(message, also=(ValueError, FloatingPointError)):
        from fastmalade.attacks import GradientWarning
        from fastmalade.attacks.cost import gradient_cost
        from fastmalade.defenses.defended import DefendedClassifier
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.evaluation import WhiteboxSettings, whitebox_rows
        from fastmalade.evaluation.whitebox import AttackNameError
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier

        settings = WhiteboxSettings(
            epsilon=epsilon,
            norm=norm,
            steps=steps,
            step_size=step_size,
            eot=eot,
            restarts=restarts,
            judge_chains=judge_chains,
            seed=seed,
        )
        try:
            runs = settings.attacks(names(attacks))
        except AttackNameError as error:
            raise CliError(f"--attacks: {error}") from error
        x, y = digits(split, images, data_dir)
        defended = DefendedClassifier(
            Purifier.from_pretrained(model), in_channels_last(load_classifier(classifier))
        ).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)  # printed below the table
            rows = list(whitebox_rows(defended, x, y, runs, batch_size=batch_size, checkpoint_dir=checkpoint_dir))
        some = slice(0, batch_size)
        costs = {
            name: gradient_cost(defended, x[some], y[some], gradient=run.gradient, samples=run.eot)
            for name, run in runs.items()
            if run.gradient != "blind"
        }
        title = f"{model} + {classifier}, {len(x)} {split} images, {norm} {epsilon:g}, EOT {eot}, seed {seed}"
        Console(width=120).print(whitebox_table(rows, title, costs=costs))
        for row in rows:
            for message in row.warnings:
                typer.echo(f"warning: {row.attack}: {message}")
        if output is not None:
            payload = {
                "model": model,
                "classifier": classifier,
                "split": split,
                "images": len(x),
                "batch_size": batch_size,
                "settings": {name: run.settings() for name, run in runs.items()},
                "rows": [row.to_json() for row in rows],
                "gradient_costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
            }
            write_json(output, payload, indent=2)
