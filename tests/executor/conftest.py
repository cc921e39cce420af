"""A stand-in for the capture layer that runs on the CPU and writes down what it was asked to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmalade.executor import GraphCaptureError


class RecordingCapture:
    """A "graph" is the function and its result buffer; a replay computes into the buffer, as the device would."""

    device_type = "cpu"

    def __init__(self, bytes_each: int = 1000) -> None:
        self.calls: list[str] = []
        self.bytes_each = bytes_each
        self.fails: Exception | None = None
        self.running = threading.Lock()

    def capture(self, function: Callable[[], Tensor], device: torch.device) -> tuple[Any, Tensor]:
        self.calls.append("capture")
        if self.fails is not None:
            raise GraphCaptureError(f"cannot be captured: {self.fails}") from self.fails
        result = torch.full_like(function(), float("nan"))
        return (function, result), result

    def replay(self, graph: Any) -> None:
        self.calls.append("replay")
        function, result = graph
        result.copy_(function())

    def bytes_of(self, graph: Any, device: torch.device) -> int:
        return self.bytes_each

    def mark(self, device: torch.device) -> Any:
        self.calls.append("mark")
        return len(self.calls)

    def wait(self, event: Any, device: torch.device) -> None:
        self.calls.append(f"wait {event}")

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.calls.append("hold")


@pytest.fixture
def capture() -> RecordingCapture:
    return RecordingCapture()
