"""Fixtures of the tests that run the Triton kernels on the CPU, in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fastmalade.backends.triton import tiles as triton_tiles


def pytest_configure() -> None:
    torch.set_num_threads(1)
    from triton.runtime.interpreter import interpreter_builder

    # Checks of integer overflow take a third of the time. The words' sums and products are meant to wrap around.
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)


@pytest.fixture(autouse=True)
def _large_blocks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time is one of calls: larger blocks are fewer of them."""
    path = tmp_path_factory.getbasetemp() / "tiles.json"
    if not path.exists():
        path.write_text(json.dumps({"interpreter": {stage: {"block_m": 512} for stage in triton_tiles.DEFAULTS}}))
    monkeypatch.setenv(triton_tiles.VARIABLE, str(path))
