"""The calls of torch.cuda behind the executor; tests put a recording stand-in in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_WARM_UPS = 2
# Two captures at a time would invalidate each other's allocations.
_CAPTURING = threading.Lock()


class GraphCaptureError(RuntimeError):
    """A model cannot be captured into a CUDA graph; the message says why and what to do."""


class Capture(Protocol):
    """What the executor needs of a device."""

    device_type: str

    def capture(self, function: Callable[[], Tensor], device: torch.device) -> tuple[Any, Tensor]:
        """Records the launches of ``function``: a graph, and the tensor its replays write their result to."""

    def replay(self, graph: Any) -> None:
        """Launches a graph on the current stream."""

    def bytes_of(self, graph: Any, device: torch.device) -> int:
        """Device memory that the graph's intermediate results occupy."""

    def mark(self, device: torch.device) -> Any:
        """An event behind everything that the current stream has been given so far."""

    def wait(self, event: Any, device: torch.device) -> None:
        """Lets the current stream wait for an event; the host goes on."""

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Keeps the memory of tensors from being reused before the current stream's work so far has ended."""


class CudaCapture:
    """CUDA graphs of torch."""

    device_type = "cuda"

    def capture(self, function: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """See :class:`Capture`. Raises GraphCaptureError for a function that a graph cannot hold."""
        with _CAPTURING, torch.cuda.device(device):
            # On a stream of its own, so that the compilation of kernels and the choice of algorithms, which a capture
            # forbids, are over before it starts.
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may allocate and launch meanwhile: their calls are no concern of this capture.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    result = function()
            except Exception as error:
                raise GraphCaptureError(
                    "the model cannot be captured into a CUDA graph: expected a forward pass that only launches "
                    f"kernels, got {type(error).__name__}: {error}. Usual causes: a value read on the host (.item(), "
                    "a condition on a tensor, .cpu()), a copy from memory that is not pinned, an operation that "
                    "synchronises, or a stream of the model's own"
                ) from error
        return graph, result

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """See :class:`Capture`."""
        graph.replay()

    def bytes_of(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> int:
        """See :class:`Capture`."""
        pool = tuple(graph.pool())
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == pool)

    def mark(self, device: torch.device) -> torch.cuda.Event:
        """See :class:`Capture`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event

    def wait(self, event: torch.cuda.Event, device: torch.device) -> None:
        """See :class:`Capture`."""
        torch.cuda.current_stream(device).wait_event(event)

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """See :class:`Capture`."""
        stream = torch.cuda.current_stream(device)
        for tensor in tensors:
            tensor.record_stream(stream)
