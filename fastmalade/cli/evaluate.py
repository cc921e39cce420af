"""``fastmalade evaluate``: a suite of attacks on a defended classifier, and whether its figures can be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmalade.cli.digits import digits
from fastmalade.cli.errors import CliError, exit_codes, require_packages
from fastmalade.files import write_bytes, write_json

if TYPE_CHECKING:
    from fastmalade.suites import EvaluationReport

EXIT_FAIL = 3


def evaluate(
    model: Annotated[
        str, typer.Option(help="Defence, a name or a file; 'none' evaluates the bare classifier.")
    ] = "malade-mnist",
    classifier: Annotated[str, typer.Option(help="Classifier, a name or a file.")] = "mnist-c",
    suite: Annotated[
        str, typer.Option(help="quick (minutes), sound (hours), mnist-whitebox (001 Table 1), or a .toml file.")
    ] = "quick",
    split: Annotated[
        str, typer.Option(help="embedded (1,000 digits in the package), validation or test.")
    ] = "embedded",
    images: Annotated[int | None, typer.Option(help="Use this many images, spread evenly over the split.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Radius of the ball, in place of the suite's.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1, in place of the suite's.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts of the images; see fastmalade merge.")] = "1/1",
    seed: Annotated[int, typer.Option(help="Of all attacks and verdicts.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the MNIST files.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the report (JSON, Markdown, HTML), the attacked images and the state of the run; "
                     "an interrupted command goes on from it."),
    ] = None,
) -> None:  # fmt: skip
    """Attack a defended classifier by a suite, and say whether the result can be trusted: PASS, WARN or FAIL.

    The verdict is about the evaluation, not about the defence: FAIL (exit code 3) means that accuracies above are no
    evidence of robustness, because gradients are masked or the attacks too weak.
    """
    with exit_codes("interrupted; with --output the same command goes on", also=(ValueError,)):
        require_packages("attacks", "art")
        from fastmalade.defenses.base import Defense
        from fastmalade.defenses.defended import DefendedClassifier
        from fastmalade.models import in_channels_last
        from fastmalade.models.registry import load_classifier
        from fastmalade.suites import evaluate as evaluated
        from fastmalade.suites import load_suite
        from fastmalade.suites.page import write_page

        chosen = load_suite(suite, epsilon=epsilon, norm=norm)
        x, y = digits(split, None, data_dir)
        count = min(chosen.images, len(x)) if images is None else images
        x, y = digits(split, count, data_dir)
        target = in_channels_last(load_classifier(classifier)).eval()
        if model != "none":
            defence = Defense.from_pretrained(model)
            if defence.gradient != "unrolled":
                raise CliError(
                    f"--model: expected a defence with an exact gradient, got {model} with {defence.gradient}"
                )
            target = DefendedClassifier(defence, target).eval()
        part = _shard(shard)
        report = evaluated(target, x, y, suite=chosen, n_images=count, shard=part, seed=seed, folder=output)
        if output is not None:
            write_page(report, output / "report.html")
        _tell(report)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of fastmalade evaluate --shard, one of each shard.")],
    output: Annotated[Path, typer.Option(help="Folder for the report of all (JSON, Markdown, HTML).")],
) -> None:
    """Put the reports of shards together: many machines, one result."""
    with exit_codes(also=(ValueError,)):
        from fastmalade.suites import EvaluationReport, merge_reports
        from fastmalade.suites.page import write_page

        parts = []
        for folder in folders:
            try:
                parts.append(EvaluationReport.from_json(json.loads((folder / "report.json").read_text())))
            except ValueError as error:
                raise CliError(f"{folder / 'report.json'}: {error}") from error
        report = merge_reports(parts)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "report.json", report.to_json(), indent=1)
        write_bytes(output / "report.md", report.to_markdown().encode())
        write_page(report, output / "report.html")
        _tell(report)


def _tell(report: EvaluationReport) -> None:
    typer.echo(str(report))
    if report.verdict == "FAIL":
        raise typer.Exit(EXIT_FAIL)


def _shard(text: str) -> tuple[int, int]:
    index, slash, shards = text.partition("/")
    if not (slash and index.isdecimal() and shards.isdecimal()):
        raise CliError(f"--shard: expected i/n, got {text!r}")
    return int(index), int(shards)
