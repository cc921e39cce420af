"""Defences as CUDA graphs: captured once per bucket of batch sizes, replayed with fresh noise, one launch per call.

    executor = GraphExecutor.of_purifier(purifier)    # or .of_defense(rival), .of_classifier(defended)
    clean = executor(images, seed=7, sample_ids=ids)  # CUDA tensors; as purifier(images, ...), without gradient
    print(executor.report())

If r(x) is your own module, a step is a dozen launches of microseconds each, and for a small batch the time is that of
the CPU that issues them. A graph holds all launches of a call. Seed and sample ids are read from device memory when the
kernels run, so each replay draws the noise of its own call.

    graphs.py       buckets, static buffers, locks, memory; does not call torch.cuda
    capture.py      the calls of torch.cuda
    fingerprint.py  when a capture has gone stale
    chains.py       the graphs that ``Purifier.purify`` uses without being asked to
"""

from __future__ import annotations

from fastmalade.executor.capture import CudaCapture, GraphCaptureError
from fastmalade.executor.graphs import GraphExecutor, GraphReport

__all__ = ["CudaCapture", "GraphCaptureError", "GraphExecutor", "GraphReport"]
