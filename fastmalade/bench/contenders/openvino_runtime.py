"""OpenVINO on its CPU plugin in float32, buffers shared with numpy."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

from fastmalade.bench.contenders import onnx_graph
from fastmalade.bench.contenders.base import Chain, Peer
from fastmalade.bench.task import Task


class OpenVino(Peer):
    """Forms as those of ONNX Runtime, from the same graphs. One stream: a call is one batch."""

    name = "openvino"
    title = "OpenVINO"
    packages = ("openvino", "onnx")
    modules = ("openvino", "onnx")
    forms = onnx_graph.FORMS

    def prepare(self, task: Task, form: str) -> Chain:
        """Compile the model; input tensors are set once and refilled."""
        request, x = self._request(task, form)

        def reconstruct(images: np.ndarray) -> np.ndarray:
            np.copyto(x, images)
            request.infer()
            return request.get_output_tensor(0).data

        if form == "forward only":
            return onnx_graph.stepwise(reconstruct, task, onnx_graph.draw_noise)
        noise = self._noise_buffers(request, task) if form == "noise given" else []

        def run(images: np.ndarray) -> np.ndarray:
            for z in noise:
                onnx_graph.draw_noise(z)
            # The output tensor is the request's own and the next call writes over it.
            return reconstruct(images).copy()

        return run

    def _request(self, task: Task, form: str) -> tuple[Any, np.ndarray]:
        openvino = _openvino()
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": task.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Processors with bfloat16 units would otherwise compute in it.
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        model = core.read_model(onnx_graph.build(task, form, is_rewritten=self.is_rewritten))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        x = np.empty(task.image_shape, np.float32)
        request.set_tensor("x", openvino.Tensor(x, shared_memory=True))
        return request, x

    def _noise_buffers(self, request: Any, task: Task) -> list[np.ndarray]:
        openvino = _openvino()
        noise = [np.empty(task.image_shape, np.float32) for _ in range(task.n_steps)]
        for step, z in enumerate(noise):
            request.set_tensor(f"z{step}", openvino.Tensor(z, shared_memory=True))
        return noise


def _openvino() -> ModuleType:
    """The library without its telemetry, which would start processes and use the network while others are timed.

    OpenVINO does without it where the package cannot be imported.
    """
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
        return importlib.import_module("openvino")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it now fails
    return importlib.import_module("openvino")
