"""``fastmalade train``: autoencoders (DAE, sDAE), purifiers and classifiers, on MNIST or on any images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from fastmalade.cli.errors import CliError, exit_codes

train_app = typer.Typer(
    help="Train an autoencoder (DAE or sDAE), a purifier under attack, or a classifier.", no_args_is_help=True
)

# Settings, images, labels and checkpoints that do not fit are ValueErrors of the training functions.
_ON_INTERRUPT = "interrupted; with --checkpoint the same command goes on from the last whole epoch"

Output = Annotated[Path, typer.Argument(help="File to write (.safetensors).")]
Images = Annotated[
    Path | None,
    typer.Option(help="Images, IDX or .npy: (n, H, W), (n, C, H, W); uint8, or floats in [0, 1]. Default: MNIST."),
]
Labels = Annotated[Path | None, typer.Option(help="Labels of --images, IDX or .npy, (n,) integers.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the MNIST files.")]
Holdout = Annotated[float, typer.Option(help="Share of --images, the last ones, kept for validation.")]
Limit = Annotated[int | None, typer.Option(help="Use only this many training images.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Written after each epoch; training goes on from it if it exists.")
]
Seed = Annotated[int, typer.Option(help="All randomness follows from it.")]
BatchSize = Annotated[int, typer.Option(help="Images per step.")]
LearningRate = Annotated[float, typer.Option(help="Adam's rate at the start.")]
Epsilon = Annotated[float, typer.Option(help="Radius of the attack in training, in units of images in [0, 1].")]
NormName = Annotated[str, typer.Option(help="linf, l2 or l1.")]
AttackSteps = Annotated[int, typer.Option(help="Steps of that attack on every batch.")]


@train_app.command("autoencoder")
def train_autoencoder_command(
    output: Output,
    classifier: Annotated[
        str | None, typer.Option(help="Supervising classifier, a shipped name or a file: gives the sDAE.")
    ] = None,
    sigma2: Annotated[float, typer.Option(help="Variance of the training noise.")] = 0.15,
    supervision: Annotated[
        float, typer.Option(help="Weight of the supervised term; the number of pixels (784) for a mean squared error.")
    ] = 1.0,
    class_balanced: Annotated[bool, typer.Option(help="Every class counts the same.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 50,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-2,
    steps: Annotated[int, typer.Option(help="N of the chain stored with the weights.")] = 10,
    step_size: Annotated[float, typer.Option(help="a_0 of that chain.")] = 0.2,
    noise_scale: Annotated[float, typer.Option(help="d_0 of that chain.")] = 0.05,
    device: Annotated[str, typer.Option(help="Where training runs: cpu, cuda.")] = "cpu",
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    images: Images = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    holdout: Holdout = 0.1,
    limit: Limit = None,
) -> None:
    """Train a DAE, or with --classifier an sDAE, and write a purifier that `fastmalade purify --model` takes."""
    with exit_codes(_ON_INTERRUPT, also=(ValueError,)):
        from fastmalade.chain.config import ChainConfig
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.models.registry import load_classifier
        from fastmalade.training import train_autoencoder

        chain = ChainConfig(n_steps=steps, step_size=step_size, noise_scale=noise_scale)
        (x, y), validation = _data(images, labels, data_dir, holdout, limit)
        supervisor = None if classifier is None else load_classifier(classifier)
        model, report = train_autoencoder(
            x,
            y,
            classifier=supervisor,
            validation=validation,
            checkpoint=checkpoint,
            device=device,
            sigma2=sigma2,
            supervision=supervision,
            class_balanced=class_balanced,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        Purifier(model, chain).save_pretrained(output, training={**report.settings, **report.final})
        _report(output, report.final, report.seconds)


@train_app.command("purifier")
def train_purifier_command(
    output: Output,
    purifier: Annotated[str, typer.Option(help="What to start from: a shipped name or a file.")] = "malade-mnist",
    classifier: Annotated[str, typer.Option(help="The classifier behind it: a shipped name or a file.")] = "mnist-c",
    classifier_output: Annotated[
        Path | None, typer.Option(help="Train the classifier too, and write it here (.safetensors).")
    ] = None,
    epsilon: Epsilon = 0.3,
    norm: NormName = "linf",
    attack_steps: AttackSteps = 6,
    eot: Annotated[int, typer.Option(help="Noise draws that each of these steps averages over.")] = 1,
    denoising: Annotated[float, typer.Option(help="Weight of the term that keeps r a denoiser.")] = 0.0,
    clean_share: Annotated[float, typer.Option(help="Share of each batch that is not attacked.")] = 0.25,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without gain; 0: never.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 4,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 1e-3,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    images: Images = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    holdout: Holdout = 0.1,
    limit: Limit = None,
) -> None:
    """Train a purifier on attacked images, by the exact gradient through its chain."""
    with exit_codes(_ON_INTERRUPT, also=(ValueError, TypeError)):
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier, save_classifier
        from fastmalade.training import train_purifier

        (x, y), validation = _data(images, labels, data_dir, holdout, limit)
        trained, behind, report = train_purifier(
            Purifier.from_pretrained(purifier),
            in_channels_last(load_classifier(classifier)),
            x,
            y,
            train_classifier=classifier_output is not None,
            validation=validation,
            checkpoint=checkpoint,
            epsilon=epsilon,
            norm=norm,
            attack_steps=attack_steps,
            eot=eot,
            denoising=denoising,
            clean_share=clean_share,
            patience=patience,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        facts = {**report.settings, **report.final}
        if classifier_output is not None:
            save_classifier(behind, classifier_output, training=facts)
        trained.save_pretrained(output, training=facts)
        _report(output, report.final, report.seconds)


@train_app.command("classifier")
def train_classifier_command(
    output: Output,
    name: Annotated[str, typer.Option(help="Architecture A, B, C or D of paper 000, Table 7.")] = "C",
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 12,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-3,
    max_shift: Annotated[int, typer.Option(help="Move training images by up to this many pixels.")] = 0,
    adversarial: Annotated[
        str | None, typer.Option(help="pgd: train on attacked images (Madry et al. 2018); alp: and pair the logits.")
    ] = None,
    epsilon: Epsilon = 0.3,
    norm: NormName = "linf",
    attack_steps: AttackSteps = 10,
    initial: Annotated[str | None, typer.Option(help="Start from this classifier: a shipped name or a file.")] = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    images: Images = None,
    labels: Labels = None,
    data_dir: DataDir = None,
    holdout: Holdout = 0.1,
    limit: Limit = None,
) -> None:
    """Train a classifier and write its weights."""
    with exit_codes(_ON_INTERRUPT, also=(ValueError,)):
        from fastmalade.models.registry import load_classifier, save_classifier
        from fastmalade.training import train_classifier

        attack: dict[str, Any] = (
            {} if adversarial is None else {"epsilon": epsilon, "norm": norm, "attack_steps": attack_steps}
        )
        (x, y), validation = _data(images, labels, data_dir, holdout, limit)
        model, report = train_classifier(
            name,
            x,
            y,
            adversarial=adversarial,
            initial=None if initial is None else load_classifier(initial),
            validation=validation,
            checkpoint=checkpoint,
            num_classes=int(max(y.max(), validation[1].max())) + 1,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_shift=max_shift,
            seed=seed,
            **(attack if adversarial is not None else {}),
        )
        save_classifier(model, output, training={**report.settings, **report.final})
        _report(output, report.final, report.seconds)


def _report(output: Path, scores: dict[str, float], seconds: float) -> None:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if name.startswith("validation"))
    typer.echo(f"{output}: {shown or 'trained'} ({seconds:.0f} s)")


def _data(
    images: Path | None, labels: Path | None, data_dir: Path | None, holdout: float, limit: int | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation pairs: images (n, C, H, W) float32 in [0, 1], labels (n,) int64."""
    if (images is None) != (labels is None):
        raise CliError("expected --images and --labels together, got one of them")
    if images is None or labels is None:
        from fastmalade.data import load_mnist

        train, validation = load_mnist("train", data_dir), load_mnist("validation", data_dir)
    else:
        if not 0.0 < holdout < 1.0:
            raise CliError(f"--holdout: expected a share in (0, 1), got {holdout}")
        x, y = _images(images), torch.from_numpy(_array(labels)).long()
        if len(x) != len(y):
            raise CliError(f"expected as many labels as images, got {len(y)} and {len(x)}")
        cut = len(x) - max(1, round(len(x) * holdout))
        train, validation = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    if limit is not None:
        if limit < 1:
            raise CliError(f"--limit: expected at least 1, got {limit}")
        train = (train[0][:limit], train[1][:limit])
    return train, validation


def _array(path: Path) -> np.ndarray:
    from fastmalade.data import read_idx

    return np.load(path, allow_pickle=False) if path.suffix == ".npy" else read_idx(path)


def _images(path: Path) -> Tensor:
    values = torch.from_numpy(_array(path))
    if values.ndim == 3:
        values = values.unsqueeze(1)
    return values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
