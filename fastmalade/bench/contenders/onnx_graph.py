"""The chain as an ONNX graph, for the runtimes that read ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmalade.bench import rewritten
from fastmalade.bench.task import HIGH, LOW, Task

OPSET = 18
IR_VERSION = 10
FORMS = ("noise given", "noise in graph", "forward only")


class _Graph:
    """Nodes, inputs and constants as they come together."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node; gives the name of its output."""
        from onnx import helper

        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A float32 constant, stored once under its name."""
        from onnx import numpy_helper

        if name not in self.constants:
            array = np.ascontiguousarray(np.asarray(value, np.float32))
            self.constants[name] = numpy_helper.from_array(array.reshape(np.shape(value)), name)
        return name


def build(task: Task, form: str, *, is_rewritten: bool) -> bytes:
    """The model as bytes; static shapes.

    Inputs: ``x`` (B, C, H, W), and with "noise given" ``z0``..``z{N-1}`` of the same shape. Output: ``y``. "forward
    only" is one r(x), without update, noise and clamp.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    inputs = ["x"]
    x = "x"
    for step in range(1 if form == "forward only" else task.n_steps):
        r = _rewritten(graph, x, task) if is_rewritten else _table8(graph, x, task)
        if form == "forward only":
            x = r
            break
        if form == "noise in graph":
            z = graph.add("RandomNormalLike", [x])
        else:
            z = f"z{step}"
            inputs.append(z)
        residual = graph.add("Sub", [r, x])
        drift = graph.add("Mul", [residual, graph.constant(f"a{step}", task.step_sizes[step])])
        noise = graph.add("Mul", [z, graph.constant(f"d{step}", task.noise_scales[step])])
        x = graph.add("Add", [graph.add("Add", [x, drift]), noise])
    if form != "forward only":
        x = graph.add("Clip", [x, graph.constant("low", LOW), graph.constant("high", HIGH)])
    graph.nodes[-1].output[0] = "y"

    def described(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, task.image_shape)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "chain", [described(name) for name in inputs], [described("y")], list(graph.constants.values())
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _table8(graph: _Graph, x: str, task: Task) -> str:
    """The layers of paper 000, Table 8, as they are."""
    w = [graph.constant(f"w{i}", weight.numpy()) for i, weight in enumerate(task.weights)]
    half = {"strides": [2, 2], "pads": [2, 2, 2, 2]}
    x = graph.add("Tanh", [graph.add("Conv", [x, w[0], w[1]], **half)])
    x = graph.add("Tanh", [graph.add("Conv", [x, w[2], w[3]], **half)])
    up = {"strides": [2, 2], "output_padding": [1, 1]}
    x = graph.add("Tanh", [graph.add("ConvTranspose", [x, w[4], w[5]], pads=[4, 4, 4, 4], **up)])
    x = graph.add("Tanh", [graph.add("ConvTranspose", [x, w[6], w[7]], **up)])
    return graph.add("Tanh", [graph.add("Conv", [x, w[8], w[9]], pads=[2, 2, 2, 2])])


def _rewritten(graph: _Graph, x: str, task: Task) -> str:
    """The graph of :mod:`fastmalade.bench.rewritten`."""
    arrays = vars(rewritten.rewrite(task.weights, *task.shape[1:]))
    c = {name: graph.constant(name, array) for name, array in arrays.items()}
    half = {"strides": [2, 2], "pads": [2, 2, 2, 2]}
    shuffle = {"blocksize": 2, "mode": "CRD"}
    x = graph.add("Tanh", [graph.add("Conv", [x, c["conv1"], c["bias1"]], **half)])
    x = graph.add("Tanh", [graph.add("Conv", [x, c["conv2"], c["bias2"]], **half)])
    x = graph.add("Conv", [x, c["up1"], c["up_bias1"]], pads=[2, 2, 2, 2])
    x = graph.add("Tanh", [graph.add("DepthToSpace", [x], **shuffle)])
    x = graph.add("Tanh", [graph.add("Conv", [x, c["point"], c["point_bias"]])])
    x = graph.add("DepthToSpace", [graph.add("Conv", [x, c["up2"]], pads=[1, 1, 1, 1])], **shuffle)
    return graph.add("Tanh", [graph.add("Add", [x, c["constant"]])])


def stepwise(reconstruct: Any, task: Task, draw: Any) -> Any:
    """Chain of the form "forward only": ``reconstruct(x)`` by the runtime, update in numpy without temporaries.

    ``draw(z)`` fills a float32 array with standard normal noise.
    """
    z = np.empty(task.image_shape, np.float32)
    schedule = [(np.float32(a), np.float32(d)) for a, d in zip(task.step_sizes, task.noise_scales, strict=True)]

    def run(images: np.ndarray) -> np.ndarray:
        x = images.copy()
        for a, d in schedule:
            r = reconstruct(x)
            np.subtract(r, x, out=r)
            np.multiply(r, a, out=r)
            np.add(x, r, out=x)
            draw(z)
            np.multiply(z, d, out=z)
            np.add(x, z, out=x)
        return np.clip(x, LOW, HIGH, out=x)

    return run


def draw_noise(z: np.ndarray) -> None:
    """Fill ``z`` by ``torch.randn``, which is vectorised; numpy's generators draw one number at a time."""
    import torch

    torch.randn(z.shape, out=torch.from_numpy(z))
