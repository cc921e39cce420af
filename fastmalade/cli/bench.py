"""``fastmalade bench``: the native chain against every other way to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fastmalade.cli.errors import CliError, exit_codes, require_packages
from fastmalade.cli.options import integers, names
from fastmalade.cli.tables import wide_console
from fastmalade.progress import progress_bar

if TYPE_CHECKING:
    from fastmalade.bench import Settings

PARTS = 1000

bench_app = typer.Typer(invoke_without_command=True, add_completion=False, rich_markup_mode=None)


@bench_app.callback()
def bench(
    context: typer.Context,
    peers: Annotated[
        str, typer.Option(help="Peers, comma-separated: names, or all, rewritten (graph rewritten by hand), none.")
    ] = "all",
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,4,16,64,256,1024",
    steps: Annotated[str, typer.Option(help="Numbers of steps N, comma-separated.")] = "10",
    shapes: Annotated[str, typer.Option(help="Shapes CxHxW, comma-separated.")] = "1x28x28",
    threads: Annotated[int, typer.Option(min=1, help="Threads; the process is held to as many processors.")] = 1,
    isa: Annotated[
        str, typer.Option(help="Instruction sets of the native chain, comma-separated [default: the widest].")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each contender in each cell.")] = 5.0,
    gradient: Annotated[bool, typer.Option("--gradient", help="Time the input gradient, forward included.")] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Only print where the time of the native chain goes.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the result as JSON, after every batch size.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what --output has of the same settings, machine and commit.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw microseconds per image against the batch size.")] = None,
) -> None:
    """Time the native chain and its peers, taking turns, each verified first; print microseconds per image."""
    if context.invoked_subcommand is not None:
        return
    with exit_codes("interrupted; what --output has is kept, and --resume goes on from it", also=(ValueError,)):
        from fastmalade.bench import Settings
        from fastmalade.bench.settings import parse_shape

        if plot is not None:
            require_packages("bench", "matplotlib")
        if resume and output is None:
            raise CliError("--resume: expected --output too, the file to go on from")
        settings = Settings(
            peers=tuple(names(peers)),
            batches=integers("--batches", batches),
            steps=integers("--steps", steps),
            shapes=tuple(parse_shape(text) for text in names(shapes)),
            threads=threads,
            isas=tuple(names(isa)),
            seconds=seconds,
            gradient=gradient,
        )
        console = wide_console(160)
        if stages:
            _print_stages(settings, console)
        else:
            _run(settings, console, output, resume, plot)


@bench_app.command("defenses")
def defenses(
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,64",
    steps: Annotated[str, typer.Option(help="Values of N and L, comma-separated; Defense-GAN adds 200.")] = "10,25,50",
    restarts: Annotated[str, typer.Option(help="Values of Defense-GAN's R, comma-separated.")] = "1,10",
    threads: Annotated[
        str, typer.Option(help="Numbers of threads, comma-separated; not on a GPU [default: 1,2].")
    ] = "",
    contenders: Annotated[str, typer.Option(help="Names, comma-separated [default: all].")] = "",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each defence in each cell.")] = 5.0,
    longest: Annotated[float, typer.Option(help="Calls that take longer, in seconds, are timed once.")] = 20.0,
    compiled: Annotated[bool, typer.Option(help="Also try torch.compile for the rivals' networks.")] = True,
    device: Annotated[
        str, typer.Option(help="cpu or cuda. On a GPU every form is also tried as a CUDA graph.")
    ] = "cpu",
    limit: Annotated[float | None, typer.Option(help="Begin no cell after this many seconds [default: none].")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result as JSON, after every cell.")] = None,
) -> None:
    """Time MALADE and the rival defences, taking turns; print microseconds per image."""
    with exit_codes("interrupted; what --output has is kept", also=(ValueError,)):
        from fastmalade.bench.defense_report import remarks, tables
        from fastmalade.bench.defenses import DefenseSettings, run

        settings = DefenseSettings(
            batches=integers("--batches", batches),
            steps=integers("--steps", steps),
            restarts=integers("--restarts", restarts),
            threads=integers("--threads", threads),
            seconds=seconds,
            longest=longest,
            compiled=compiled,
            contenders=tuple(names(contenders)),
            device=device,
            limit=limit,
        )
        console = wide_console(160)
        result = _watched(partial(run, settings, output=output))
        _print(console, tables(result), remarks(result))
        if result["failures"]:
            failed = dict.fromkeys(failure["contender"] for failure in result["failures"])
            raise CliError(f"failed and not timed: {', '.join(failed)}")


def _run(settings: Settings, console: Console, output: Path | None, resume: bool, plot: Path | None) -> None:
    from fastmalade.bench import run
    from fastmalade.bench.report import notes, tables

    result = _watched(partial(run, settings, output=output, resume=resume))
    _print(console, tables(result), notes(result))
    if plot is not None:
        from fastmalade.bench.plot import draw

        draw(result, plot)
    timed = any("us_per_image" in cell for cell in result["cells"])
    failed = [cell["contender"] for cell in result["cells"] if "us_per_image" not in cell]
    if failed:
        raise CliError(f"failed verification and not timed: {', '.join(dict.fromkeys(failed))}")
    if not timed:
        raise CliError("expected at least one contender that can run here, got none")


def _watched(run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The result of ``run(report=...)``, with a progress bar meanwhile."""
    with progress_bar(transient=True) as bar:
        task = bar.add_task("starting", total=PARTS)
        return run(report=lambda what, part: bar.update(task, description=what, completed=int(PARTS * part)))


def _print(console: Console, tables: Sequence[Table], lines: Sequence[str]) -> None:
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_stages(settings: Settings, console: Console) -> None:
    from fastmalade import backends
    from fastmalade.bench.machine import pinned
    from fastmalade.bench.stages import FORMS, stage_table, stage_times
    from fastmalade.bench.task import make_task

    with pinned(1):
        for shape in settings.shapes:
            task = make_task(shape, 1, 1)
            for isa in settings.isas or (backends.cpu.calls.isa_in_use(),):
                for form in FORMS:
                    title = f"{'x'.join(map(str, shape))}, {isa}, {form} form, one core"
                    console.print(stage_table(stage_times(task, isa, form), title))
