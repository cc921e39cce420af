"""``GraphExecutor``: buckets of batch sizes, static buffers, locking and memory of captured graphs."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmalade.executor.capture import Capture, CudaCapture
from fastmalade.executor.fingerprint import fingerprint
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed, signed64

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
"""images (B, ...), seed bits int64 (1,), sample ids int64 (B,), all on the device -> (B, ...)."""


class Capturable(Protocol):
    """A model that reads its seed from the device, as :class:`fastmalade.Defense` and ``DefendedClassifier`` do."""

    def forward_from_device(self, x: Tensor, seed_bits: Tensor, sample_ids: Tensor) -> Tensor:
        """See :data:`Function`."""


DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEFAULT_MAX_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class GraphReport:
    """One captured graph: its batch size, the shape and dtype of an image, memory in bytes, and replays so far."""

    bucket: int
    shape: tuple[int, ...]
    dtype: str
    device: str
    bytes: int
    replays: int


class _Graph:
    """A captured graph, the buffers that it reads and writes, and an event after its last use."""

    def __init__(self, capture: Capture, function: Function, bucket: int, like: Tensor) -> None:
        device = like.device
        self.lock = threading.Lock()
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.images = torch.zeros((bucket, *like.shape[1:]), dtype=like.dtype, device=device)
            self.seed = torch.zeros(1, dtype=torch.int64, device=device)
            self.ids = torch.arange(bucket, dtype=torch.int64, device=device)
            self.graph, self.result = capture.capture(lambda: function(self.images, self.seed, self.ids), device)
        self.used: Any = capture.mark(device)
        self.replays = 0
        buffers = sum(t.numel() * t.element_size() for t in (self.images, self.seed, self.ids))
        self.bytes = buffers + capture.bytes_of(self.graph, device)

    def run(self, capture: Capture, images: Tensor, seed: int, ids: Tensor) -> Tensor:
        """One replay on the current stream for at most ``bucket`` images; other rows of the result are not used."""
        device = images.device
        batch = images.shape[0]
        with self.lock:
            # The last replay, perhaps on another stream, may still be using the buffers.
            capture.wait(self.used, device)
            self.images[:batch].copy_(images)
            self.seed.fill_(signed64(seed))
            self.ids[:batch].copy_(ids)
            capture.replay(self.graph)
            result = self.result[:batch].clone()
            # The executor may drop this graph at any time, without waiting for its work to end.
            capture.hold((self.images, self.seed, self.ids), device)
            self.used = capture.mark(device)
            self.replays += 1
        return result


class GraphExecutor:
    """Runs a function of images, seed and sample ids as CUDA graphs, one for each bucket of batch sizes.

    A batch is padded to the smallest bucket that holds it; one larger than the largest bucket is split. The result
    for an image depends on its seed and sample id, not on the batch. Calls may come from any thread and stream: the
    work runs on the caller's current stream, and events pass a graph's buffers from one stream to the next without
    blocking the host. Nothing is recorded for autograd.

    Args:
        function: see ``Function``; it only launches kernels, the same ones at every call.
        version: called before each use of a graph; its value changes when a captured graph no longer matches the
            function, as that of :func:`fastmalade.executor.fingerprint.fingerprint` does.
        buckets: batch sizes to capture, ascending.
        max_bytes: device memory that all graphs together may keep; the least recently used ones are dropped first. The
            graph in use is kept, whatever its size.
        capture: the calls of the device.

    Raises:
        ValueError: buckets that are not ascending positive integers, or max_bytes < 0.
    """

    def __init__(
        self,
        function: Function,
        *,
        version: Callable[[], Hashable] = lambda: None,
        buckets: Sequence[int] = DEFAULT_BUCKETS,
        max_bytes: int = DEFAULT_MAX_BYTES,
        capture: Capture | None = None,
    ) -> None:
        sizes = tuple(buckets)
        if not sizes or sizes[0] < 1 or any(b <= a for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"buckets: expected ascending positive batch sizes, got {sizes}")
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected at least 0, got {max_bytes}")
        self.function = function
        self.version = version
        self.buckets = sizes
        self.max_bytes = max_bytes
        self._capture: Capture = CudaCapture() if capture is None else capture
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[Hashable, ...], _Graph] = OrderedDict()

    @classmethod
    def of_defense(cls, defense: Capturable, **options: Any) -> GraphExecutor:
        """``defense(images)`` of any :class:`fastmalade.Defense` without gradient; ``options`` as for the constructor.

        All steps of its iteration, and the gradients that it takes inside, are in the graph.

        Raises:
            TypeError: something else, whose randomness is unknown: a graph would replay it.
        """
        return cls._of(defense, "Defense", options)

    @classmethod
    def of_purifier(cls, purifier: Capturable, **options: Any) -> GraphExecutor:
        """``purifier(images)`` without gradient, as :meth:`of_defense`."""
        return cls._of(purifier, "Purifier", options)

    @classmethod
    def of_classifier(cls, defended: Capturable, **options: Any) -> GraphExecutor:
        """``defended(images)`` of a ``DefendedClassifier``: defence, classifier and vote in one graph.

        See :meth:`of_defense`.
        """
        return cls._of(defended, "DefendedClassifier", options)

    @classmethod
    def _of(cls, model: Capturable, expected: str, options: dict[str, Any]) -> GraphExecutor:
        function = getattr(model, "forward_from_device", None)
        if not callable(function):
            raise TypeError(f"executor: expected a fastmalade.{expected}, got {type(model).__name__}")
        return cls(function, version=lambda: fingerprint(model), **options)

    def __call__(self, images: Tensor, *, seed: int | None = None, sample_ids: Any = None) -> Tensor:
        """The function's result for a batch.

        Args:
            images: (B, ...) on a CUDA device, as the function takes them.
            seed: 0 <= seed < 2**64; None draws a fresh one from the operating system at every call.
            sample_ids: B integers, 0..B-1 by default.

        Returns:
            The function's result, a new tensor (B, ...).

        Raises:
            TypeError: images that are not a tensor, or sample ids that are not integers.
            ValueError: images on another device, a wrong number of ids, a seed out of range.
            GraphCaptureError: the function cannot be captured.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a torch tensor, got {type(images).__name__}")
        if images.device.type != self._capture.device_type:
            raise ValueError(f"images: expected a tensor on a {self._capture.device_type} device, got {images.device}")
        number = fresh_seed() if seed is None else check_seed(seed)
        batch = images.shape[0]
        ids = check_sample_ids(sample_ids, batch, images.device)
        with torch.no_grad():
            if batch == 0:
                bits = torch.full((1,), signed64(number), dtype=torch.int64, device=images.device)
                return self.function(images, bits, ids)
            largest = self.buckets[-1]
            parts = [slice(first, min(first + largest, batch)) for first in range(0, batch, largest)]
            results = [self._run(images[part], number, ids[part]) for part in parts]
        return results[0] if len(results) == 1 else torch.cat(results)

    def report(self) -> list[GraphReport]:
        """The graphs that are kept, the least recently used one first."""
        with self._lock:
            graphs = list(self._graphs.values())
        return [
            GraphReport(
                bucket=graph.images.shape[0],
                shape=tuple(graph.images.shape[1:]),
                dtype=str(graph.images.dtype),
                device=str(graph.images.device),
                bytes=graph.bytes,
                replays=graph.replays,
            )
            for graph in graphs
        ]

    def clear(self) -> None:
        """Drop all graphs and their memory."""
        with self._lock:
            self._graphs.clear()

    def _run(self, images: Tensor, seed: int, ids: Tensor) -> Tensor:
        bucket = next(size for size in self.buckets if size >= images.shape[0])
        version = self.version()
        key = (bucket, tuple(images.shape[1:]), images.dtype, images.device, version)
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None:
                # Graphs of an earlier version read memory that may have been freed.
                for stale in [other for other in self._graphs if other[-1] != version]:
                    del self._graphs[stale]
                graph = _Graph(self._capture, self.function, bucket, images)
                self._graphs[key] = graph
            self._graphs.move_to_end(key)
            while len(self._graphs) > 1 and sum(g.bytes for g in self._graphs.values()) > self.max_bytes:
                self._graphs.popitem(last=False)
        return graph.run(self._capture, images, seed, ids)
