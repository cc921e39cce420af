"""What is refused before a capture begins, with a stand-in for torch.cuda: the order of calls needs no GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastmalade.executor import GraphCaptureError
from fastmalade.executor.capture import CudaCapture


@pytest.fixture
def cuda(monkeypatch) -> SimpleNamespace:
    """The state that the stand-in keeps: the synchronisation mode, and the graphs that were begun."""
    state = SimpleNamespace(mode=0, begun=0)
    stream = SimpleNamespace(wait_stream=lambda other: None)

    def set_mode(mode):
        state.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    def begin(*_arguments, **_options):
        state.begun += 1
        return nullcontext()

    replaced = {
        "device": lambda device: nullcontext(),
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda chosen: nullcontext(),
        "CUDAGraph": SimpleNamespace,
        "graph": begin,
        "get_sync_debug_mode": lambda: state.mode,
        "set_sync_debug_mode": set_mode,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return state


@pytest.mark.parametrize("before", [0, 1])
def test_what_waits_for_the_device_never_reaches_a_capture(cuda, before):
    cuda.mode, calls = before, []

    def waits():
        calls.append(cuda.mode)
        if cuda.mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.zeros(1)

    with pytest.raises(GraphCaptureError, match=r"expected a forward pass that only launches .*synchronizing"):
        CudaCapture().capture(waits, torch.device("cuda"))
    assert cuda.begun == 0
    assert cuda.mode == before
    assert calls == [before, before, 2]


def test_an_error_of_the_model_itself_is_not_called_a_capture(cuda):
    def fails():
        raise ValueError("a shape")

    with pytest.raises(ValueError, match="a shape"):
        CudaCapture().capture(fails, torch.device("cuda"))
    assert cuda.begun == 0


def test_what_only_launches_is_captured(cuda):
    graph, result = CudaCapture().capture(lambda: torch.ones(2), torch.device("cuda"))
    assert torch.equal(result, torch.ones(2))
    assert graph is not None
    assert (cuda.begun, cuda.mode) == (1, 0)
