"""Saying what a long command is doing and how long it took: on standard error, and in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fastmalade.files import append_line, write_bytes
from fastmalade.progress import progress_bar

EVERY_SECONDS = 5.0
Advance = Callable[[float, float, str], None]
"""Called with how much is done, how much there is in all, and what is being done."""


class Stages:
    """The stages of a command, one after the other.

    A terminal shows a progress bar, and one line when a stage is over. Where standard error is not a terminal, and in
    the log file, there is a line at the start, one every ``EVERY_SECONDS`` and one at the end. Each line begins with
    the seconds since the command started.

    Args:
        log: file for the lines, written from the start.
        clock: seconds, monotonic.

    Attributes:
        seconds: wall time of the stages that are over, by name.
    """

    def __init__(self, log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._started = clock()
        self._terminal = Console(stderr=True).is_terminal
        self._log = log
        write_bytes(log, b"")

    def say(self, text: str, *, to_terminal: bool = True) -> None:
        """Write one line; a terminal gets it only with ``to_terminal``."""
        line = f"[{self._clock() - self._started:6.1f} s] {text}"
        if to_terminal or not self._terminal:
            typer.echo(line, err=True)
        append_line(self._log, line)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Run one stage; gives a function that tells how far it is."""
        began = told = self._clock()
        self.say(f"{name} ...", to_terminal=False)

        def advance(done: float, total: float, what: str) -> None:
            nonlocal told
            bar.update(task, description=f"{name}: {what}", completed=done, total=total)
            if self._clock() - told >= EVERY_SECONDS:
                told = self._clock()
                self.say(f"{name}: {what}, {100 * done / total:.0f}%", to_terminal=False)

        try:
            with progress_bar(transient=True, enabled=self._terminal) as bar:
                task = bar.add_task(name, total=None)
                yield advance
        except BaseException:
            self.say(f"{name}: stopped after {self._clock() - began:.1f} s")
            raise
        self.seconds[name] = self._clock() - began
        self.say(f"{name}: done in {self.seconds[name]:.1f} s")
