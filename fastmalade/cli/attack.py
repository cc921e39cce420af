"""``fastmalade attack``: attacks that know the defence, and what is left of its accuracy."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from fastmalade.cli.errors import CliError, exit_codes
from fastmalade.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from fastmalade.attacks import AttackResult
    from fastmalade.attacks.cost import GradientCost

DEFAULT_ATTACKS = "pgd:unrolled,pgd:bpda,pgd:blind"
SPLITS = ("embedded", "validation", "test")


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
    compares the gradients of their two halves. "classifier" is the part of a gradient's time that the classifier takes
    by itself.
    """
    message = "interrupted; with --checkpoint-dir the same command goes on"
    with exit_codes(message, also=(ValueError, FloatingPointError)):
        from fastmalade.attacks import FGSM
        from fastmalade.attacks.cost import gradient_cost
        from fastmalade.defenses.defended import DefendedClassifier
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier

        common = {
            "epsilon": epsilon,
            "norm": norm,
            "eot": eot,
            "spread": eot > 1,
            "judge_chains": judge_chains,
            "seed": seed,
        }
        runs = _parse(attacks, common, {"steps": steps, "step_size": step_size, "restarts": restarts})
        x, y = _images(split, images, data_dir)
        defended = DefendedClassifier(
            Purifier.from_pretrained(model), in_channels_last(load_classifier(classifier))
        ).eval()
        # An attack of radius 0 changes nothing: its verdict is the clean accuracy, judged like the rest.
        clean = FGSM(epsilon=0.0, judge_chains=judge_chains, seed=seed)
        results: dict[str, AttackResult] = {"none": clean(defended, x, y, batch_size=batch_size, progress=False)}
        for index, (name, run) in enumerate(runs.items()):
            path = None if checkpoint_dir is None else checkpoint_dir / f"{index}-{name.replace(':', '-')}.safetensors"
            results[name] = run(defended, x, y, batch_size=batch_size, checkpoint=path)
        rows = [_row(name, result) for name, result in results.items()]
        some = slice(0, batch_size)
        costs = {
            name: gradient_cost(defended, x[some], y[some], gradient=run.gradient, samples=run.eot)
            for name, run in runs.items()
            if run.gradient != "blind"
        }
        if len(runs) > 1:
            survivors = int((~_any_success(results)).sum())
            rows.append({"attack": "worst per image", "majority_correct": survivors, "n": len(x)})
        _print(
            rows, costs, f"{model} + {classifier}, {len(x)} {split} images, {norm} {epsilon:g}, EOT {eot}, seed {seed}"
        )
        if output is not None:
            payload = {
                "model": model,
                "classifier": classifier,
                "split": split,
                "images": len(x),
                "batch_size": batch_size,
                "settings": {name: run.settings() for name, run in runs.items()},
                "rows": rows,
                "gradient_costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
            }
            with replacing(output) as partial:
                partial.write_text(json.dumps(payload, indent=2) + "\n", encoding="utf-8")


def _parse(text: str, common: dict[str, Any], iterative: dict[str, Any]) -> dict[str, Any]:
    """Attacks by the name that the user gave them."""
    from fastmalade.attacks import ATTACKS
    from fastmalade.defenses.defended import GradientMode

    runs: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, gradient = item.partition(":")
        if name not in ATTACKS or (gradient and gradient not in get_args(GradientMode)):
            raise CliError(
                f"--attacks: expected {', '.join(ATTACKS)}, each with or without "
                f":{', :'.join(get_args(GradientMode))}, got {item!r}"
            )
        kind = ATTACKS[name]
        fields = {field.name for field in dataclasses.fields(kind)}
        settings = common | {key: value for key, value in iterative.items() if key in fields}
        if name.startswith("apudae") or gradient == "blind":
            # There is no noise to average over.
            settings |= {"eot": 1, "spread": False}
        if gradient:
            settings["gradient"] = gradient
        runs[item] = kind(**settings)
    if not runs:
        raise CliError("--attacks: expected at least one attack, got none")
    return runs


def _images(split: str, count: int | None, data_dir: Path | None) -> tuple[Tensor, Tensor]:
    import torch

    from fastmalade.data import embedded_digits, load_mnist

    if split not in SPLITS:
        raise CliError(f"--split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if split == "embedded":
        digits, classes = embedded_digits()
        x, y = torch.from_numpy(digits).unsqueeze(1).float() / 255, torch.from_numpy(classes)
    else:
        x, y = load_mnist(split, data_dir)  # type: ignore[arg-type]
    if count is None:
        return x, y
    if not 1 <= count <= len(x):
        raise CliError(f"--images: expected 1 to {len(x)}, got {count}")
    # Evenly spread: the embedded digits are sorted by no rule that an attack may depend on, but need not be.
    chosen = torch.arange(count) * len(x) // count
    return x[chosen], y[chosen]


def _any_success(results: dict[str, AttackResult]) -> Tensor:
    import torch

    return torch.stack([result.success for result in results.values()]).any(0)


def _row(name: str, result: AttackResult) -> dict[str, Any]:
    n = len(result.success)
    spread = None
    if result.spread is not None and bool((~result.spread.isnan()).any()):
        spread = float(result.spread.nanmean())
    return {
        "attack": name,
        "n": n,
        "accuracy_per_query": 1.0 - float(result.success_rate.mean()),
        "majority_correct": n - int(result.success.sum()),
        "cosine": spread,
        "gradients_per_image": float(result.gradients.double().mean()),
        "seconds": round(result.seconds, 2),
        "judged": result.judged,
    }


def _print(rows: list[dict[str, Any]], costs: dict[str, GradientCost], title: str) -> None:
    from fastmalade.evaluation import wilson_interval

    table = Table(title=title)
    for heading in ("attack", "accuracy, %", "majority, %", "cosine", "gradients", "seconds", "classifier, %"):
        table.add_column(heading, justify="left" if heading == "attack" else "right", no_wrap=True)
    for row in rows:
        low, high = wilson_interval(row["majority_correct"], row["n"])
        cost = costs.get(row["attack"])
        majority = f"{100 * row['majority_correct'] / row['n']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        cells = [
            _figure(row.get("accuracy_per_query"), 100, 1),
            majority,
            _figure(row.get("cosine"), 1, 2),
            _figure(row.get("gradients_per_image"), 1, 0),
            _figure(row.get("seconds"), 1, 1),
            _figure(None if cost is None else cost.classifier_share, 100, 0),
        ]
        table.add_row(row["attack"], *cells)
    Console(width=120).print(table)


def _figure(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"
