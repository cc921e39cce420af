"""The ``fastmalade`` command: puts the verbs together."""

from __future__ import annotations

import typer

from fastmalade.cli.attack import attack
from fastmalade.cli.bench import bench_app
from fastmalade.cli.certify import certify
from fastmalade.cli.demo import demo
from fastmalade.cli.evaluate import evaluate, merge
from fastmalade.cli.info import info
from fastmalade.cli.memory import keep_freed_memory
from fastmalade.cli.purify import purify
from fastmalade.cli.train import train_app
from fastmalade.cli.transfer import transfer

# Plain help and plain errors: rich boxes wrap an error message over several lines when there is no terminal.
app = typer.Typer(
    name="fastmalade",
    help="MALADE: purify images by Langevin dynamics before they are classified.",
    epilog="Exit codes: 0 done; 1 a defect, with its traceback; 2 an error that one line on standard error explains "
    "(bad input, a full disk); 3 done, but for bad images that were skipped as asked (purify --skip-bad), or with the "
    "verdict FAIL (evaluate); "
    "128 + the signal when interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("purify")(purify)
app.command("info")(info)
app.command("demo")(demo)
app.command("evaluate")(evaluate)
app.command("merge")(merge)
app.command("transfer")(transfer)
app.command("attack")(attack)
app.command("certify")(certify)
app.add_typer(bench_app, name="bench")
app.add_typer(train_app, name="train")


def main() -> None:
    """Entry point of the ``fastmalade`` script."""
    keep_freed_memory()
    app()
