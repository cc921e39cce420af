"""A small purifier in a file, and ways to call the command: in this process and in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastmalade import Autoencoder, ChainConfig, Purifier
from fastmalade.cli.app import app

CHAIN = ChainConfig(n_steps=3, step_size=0.2, noise_scale=0.05)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an untrained purifier of three steps, for 1 channel."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    Purifier(Autoencoder(generator=torch.Generator().manual_seed(1)), CHAIN).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def rgb_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 3 channels."""
    path = tmp_path_factory.mktemp("model") / "rgb.safetensors"
    Purifier(Autoencoder(3, generator=torch.Generator().manual_seed(2)), CHAIN).save_pretrained(path)
    return path


@pytest.fixture
def invoke() -> Callable[..., object]:
    """Run the command in this process: ``invoke("purify", in, out)``, with stdout and stderr apart."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as its own process, standard input closed, without a terminal; killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    main = "from fastmalade.cli.app import main; main()"

    def start(
        *arguments: object,
        code: str = main,
        ignored: tuple[signal.Signals, ...] = (),
        **environment: str,
    ) -> subprocess.Popen[str]:
        # Background jobs of a shell and nohup hand down ignored signals; tests of interruption start from the defaults.
        def set_signals() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            preexec_fn=set_signals,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
