"""The calls of torch.cuda behind the executor; tests replace them by a stand-in that records what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

_WARM_UPS = 2
# Two captures at the same time would invalidate each other's allocations.
_CAPTURING = threading.Lock()


class GraphCaptureError(RuntimeError):
    """A model that cannot be captured into a CUDA graph; the message says why and what to do."""


class Capture(Protocol):
    """What the executor needs from a device."""

    device_type: str

    def capture(self, function: Callable[[], Tensor], device: torch.device) -> tuple[Any, Tensor]:
        """Record the launches of ``function``. Returns a graph, and the tensor that replays write their result to."""

    def replay(self, graph: Any) -> None:
        """Launch a graph on the current stream."""

    def bytes_of(self, graph: Any, device: torch.device) -> int:
        """Bytes of device memory that the graph's intermediate results occupy."""

    def mark(self, device: torch.device) -> Any:
        """An event after all work that the current stream has been given so far."""

    def wait(self, event: Any, device: torch.device) -> None:
        """Make the current stream wait for an event, without blocking the host."""

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Keep the memory of tensors from being reused until the current stream has done its work so far."""


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise GraphCaptureError(
            "the model cannot be captured into a CUDA graph: expected a forward pass that only launches "
            f"kernels, got {type(error).__name__}: {error}. Usual causes: a value read on the host (.item(), "
            "a condition on a tensor, .cpu()), a copy from memory that is not pinned, an operation that "
            "synchronises, or a stream of the model's own"
        ) from error


@contextmanager
def _errors_on_synchronisation() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CudaCapture:
    """CUDA graphs of torch."""

    device_type = "cuda"

    def capture(self, function: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """See :class:`Capture`. Raises GraphCaptureError for a function that a graph cannot hold."""
        with _CAPTURING, torch.cuda.device(device):
            # Run it beforehand on another stream: kernels are compiled and algorithms chosen, which is forbidden during
            # a capture.
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    function()
                # A capture that fails leaves torch's allocator and generator of the device unusable: what waits for the
                # device is found here, where it does no harm. The mode holds for all threads meanwhile.
                with _refused(), _errors_on_synchronisation():
                    function()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate and launch meanwhile without disturbing this capture.
            with _refused(), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = function()
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
