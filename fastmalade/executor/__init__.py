"""Chains as CUDA graphs: captured once per batch-size bucket, replayed with fresh noise, one launch per call.

    executor = GraphExecutor.of_purifier(purifier)          # or .of_defense(rival), .of_classifier(defended)
    clean = executor(images, seed=7, sample_ids=ids)        # CUDA tensors; as purifier(images, ...), without gradient
    print(executor.report())

Where r(x) is a module of the user's, a step is a dozen launches of microseconds each, and the processor that issues
them is what bounds a small batch. A graph holds all launches of a call. Seed and sample ids are read from device memory
when the kernels run, so that a replay draws the noise of its own call.

    graphs.py      buckets, static buffers, locks, memory: no call of torch.cuda
    capture.py     the calls of torch.cuda
    models.py      what is captured for a defence or a defended classifier, and when a capture has gone stale
"""

from __future__ import annotations

from fastmalade.executor.capture import CudaCapture, GraphCaptureError
from fastmalade.executor.graphs import GraphExecutor, GraphReport

__all__ = ["CudaCapture", "GraphCaptureError", "GraphExecutor", "GraphReport"]
