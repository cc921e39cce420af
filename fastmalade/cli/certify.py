"""``fastmalade certify``: what no attack can change, by randomised smoothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastmalade.cli.digits import digits
from fastmalade.cli.errors import CliError, exit_codes, require_packages
from fastmalade.cli.options import names
from fastmalade.cli.tables import certified_table
from fastmalade.files import write_json

RADII = "0,0.25,0.5,0.75,1,1.25,1.5"


def certify(
    model: Annotated[str, typer.Option(help="Purifier whose autoencoder denoises, a name or a file.")] = "mala-mnist",
    classifier: Annotated[str, typer.Option(help="Classifier, a name or a file.")] = "mnist-c",
    sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise; by default that of the autoencoder's training."),
    ] = None,
    n: Annotated[int, typer.Option(help="Draws that bound the probability, for each image.")] = 10_000,
    n_selection: Annotated[int, typer.Option(help="Draws that choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="Probability, for each image, that its certificate is wrong.")] = 0.001,
    radii: Annotated[str, typer.Option(help="L2 radii of the table, comma-separated.")] = RADII,
    split: Annotated[
        str, typer.Option(help="embedded (1,000 digits in the package), validation or test.")
    ] = "embedded",
    images: Annotated[int | None, typer.Option(help="Use this many images, spread evenly over the split.")] = None,
    batch_size: Annotated[int, typer.Option(help="Draws classified at once.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the MNIST files.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Counts are kept here; an interrupted command goes on from them.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the certificates as JSON too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw certified accuracy over the radius, as PNG.")] = None,
) -> None:
    """Certify digits: the share whose class no perturbation within an L2 radius can change.

    It is a guarantee of the smoothed classifier, which shows each image many times with noise, denoised by one step of
    the autoencoder, and takes the most frequent class. Attacks can only lower other figures than these.
    """
    with exit_codes("interrupted; with --checkpoint the same command goes on", also=(ValueError,)):
        require_packages("certify", "scipy")
        if plot is not None:
            require_packages("demo", "matplotlib")
        from fastmalade.defenses.defended import DefendedClassifier
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.evaluation.certificate import certify as certified
        from fastmalade.evaluation.certificate_plot import draw_curve
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier

        shown = _radii(radii)
        if sigma is None:
            sigma = _trained_sigma(model)
        x, y = digits(split, images, data_dir)
        defended = DefendedClassifier(Purifier.from_pretrained(model), in_channels_last(load_classifier(classifier)))
        certificate = certified(
            defended, x, y, sigma=sigma, n=n, n_selection=n_selection, alpha=alpha, seed=seed, batch_size=batch_size,
            checkpoint=checkpoint,
        )  # fmt: skip
        title = (
            f"{model} + {classifier}, {len(x)} {split} images, sigma {sigma:.3g}, n {n}, alpha {alpha:g}, seed {seed}"
        )
        Console(width=120).print(certified_table(certificate, shown, x[0].numel(), title))
        if output is not None:
            facts = {"model": model, "classifier": classifier, "split": split, "images": len(x)}
            write_json(output, facts | certificate.to_json(), indent=1)
        if plot is not None:
            draw_curve({f"sigma {sigma:.3g}": certificate}, plot, title=f"{model} + {classifier}, {len(x)} digits")


def _radii(text: str) -> list[float]:
    try:
        found = [float(part) for part in names(text)]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(radius) and radius >= 0 for radius in found):
        raise CliError(f"--radii: expected numbers of at least 0, comma-separated, got {text!r}")
    return found


def _trained_sigma(model: str) -> float:
    """The square root of sigma^2 in the file's header."""
    from fastmalade.pretrained import read_header, resolve_path

    settings = dict(read_header(resolve_path(model)).get("training", {})).get("settings", {})
    if not isinstance(settings, dict) or "sigma2" not in settings:
        raise CliError(f"--sigma: {model} does not say which noise it was trained with; give a number")
    return math.sqrt(float(settings["sigma2"]))
