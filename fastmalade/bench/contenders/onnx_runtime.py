"""ONNX Runtime on its CPU provider, all graph optimisations, sequential execution."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmalade.bench.contenders import onnx_graph
from fastmalade.bench.contenders.base import Chain, Peer
from fastmalade.bench.task import Task


class OnnxRuntime(Peer):
    """Forms: the whole chain as one graph with noise given or drawn in it; or r(x) as a graph and the rest in numpy."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    packages = ("onnxruntime", "onnx")
    modules = ("onnxruntime", "onnx")
    forms = onnx_graph.FORMS

    def prepare(self, task: Task, form: str) -> Chain:
        """Optimise the graph; noise that is given is drawn into N buffers that are reused."""
        session = self._session(task, form)
        if form == "forward only":
            return onnx_graph.stepwise(lambda x: session.run(None, {"x": x})[0], task, onnx_graph.draw_noise)
        count = task.n_steps if form == "noise given" else 0
        noise = [np.empty(task.image_shape, np.float32) for _ in range(count)]
        feed: dict[str, np.ndarray] = {f"z{step}": z for step, z in enumerate(noise)}

        def run(images: np.ndarray) -> np.ndarray:
            for z in noise:
                onnx_graph.draw_noise(z)
            feed["x"] = images
            return session.run(None, feed)[0]

        return run

    def _session(self, task: Task, form: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning is fast inside a call, but after it the threads would take the processor from the next contender.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        model = onnx_graph.build(task, form, is_rewritten=self.is_rewritten)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
