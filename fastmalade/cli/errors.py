"""How the commands fail: one line on stderr and an exit code, no traceback for what a user can correct."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

import typer

EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
"""Done, but for bad images that were skipped as asked."""


class CliError(Exception):
    """Something that the user can correct; the message says in one line what was expected and what came."""


class BadImageError(CliError):
    """One image of several that cannot be read, or is not like the others."""


class InterruptedBySignalError(BaseException):
    """SIGTERM or SIGHUP turned into an exception, so that unfinished output is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def require_packages(extra: str, *modules: str) -> None:
    """Raise CliError unless all ``modules`` are installed; ``extra`` is the extra that brings them."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise CliError(f"needs {', '.join(missing)}, not installed here: pip install 'fastmalade[{extra}]'")


@contextmanager
def exit_codes(on_interrupt: str = "interrupted", *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Run a command's body: bad input ends it with exit code 2, an interruption with 128 + the signal.

    A CliError, an error of the file system, a damaged file of weights and a backend that cannot be had become
    one line on stderr. Anything else is a defect and keeps its traceback.

    Args:
        on_interrupt: what to say when Ctrl-C, SIGTERM or SIGHUP ends the command.
        also: more exceptions that mean bad input to this command.
    """
    from fastmalade.backends import BackendUnavailableError
    from fastmalade.pretrained import PretrainedError

    bad_input: tuple[type[Exception], ...] = (CliError, BackendUnavailableError, PretrainedError, OSError, *also)
    try:
        with _catch_termination():
            yield
    except bad_input as error:
        typer.echo(f"error: {_one_line(error)}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    except KeyboardInterrupt as error:
        typer.echo(on_interrupt, err=True)
        raise typer.Exit(128 + signal.SIGINT) from error
    except InterruptedBySignalError as error:
        typer.echo(on_interrupt, err=True)
        raise typer.Exit(128 + error.number) from error


@contextmanager
def _catch_termination() -> Iterator[None]:
    # By default SIGTERM and SIGHUP end Python at once, which would skip every `finally`. Only the main thread can set
    # handlers, and only the main thread receives the signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise InterruptedBySignalError(number)

    # A signal that was ignored when the command started (nohup ignores SIGHUP) stays ignored.
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
