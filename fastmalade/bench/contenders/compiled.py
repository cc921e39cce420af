"""torch.compile of the whole chain as one graph, static shapes, N steps unrolled."""

from __future__ import annotations

import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastmalade.bench.contenders.base import Chain, Peer
from fastmalade.bench.contenders.eager import autoencoder_function
from fastmalade.bench.task import HIGH, LOW, Task


class Compiled(Peer):
    """Forms: noise from ``torch.randn`` handed to the graph, in both memory formats, or drawn by generated code."""

    name = "compile"
    title = "torch.compile"
    packages = ("torch",)
    forms = ("noise given", "noise given, channels last", "noise in graph")
    differentiable = True

    def __init__(self, *, is_rewritten: bool = False) -> None:
        super().__init__(is_rewritten=is_rewritten)
        self._graphs: dict[tuple[object, ...], tuple[Callable[..., Tensor], object]] = {}

    def prepare(self, task: Task, form: str) -> Chain:
        """Compiles; the first call takes seconds to minutes."""
        chain, layout, in_graph = self._compiled(task, form)
        a, d = _schedule(task)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x = torch.from_numpy(images).contiguous(memory_format=layout)
                z = None if in_graph else torch.randn(task.n_steps, *x.shape)
                return chain(x, a, d, z).contiguous().numpy()

        return run

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """The compiled forward and backward graphs that autograd asks for."""
        chain, layout, in_graph = self._compiled(task, form)
        a, d = _schedule(task)
        seed = torch.from_numpy(cotangent)

        def run(images: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(images).contiguous(memory_format=layout).requires_grad_()
            z = None if in_graph else torch.randn(task.n_steps, *x.shape)
            return torch.autograd.grad(chain(x, a, d, z), x, seed)[0].contiguous().numpy()

        return run

    def _compiled(self, task: Task, form: str) -> tuple[Callable[..., Tensor], torch.memory_format, bool]:
        layout = torch.channels_last if "channels last" in form else torch.contiguous_format
        key = (id(task.weights), task.image_shape, task.n_steps, form)
        if key not in self._graphs:
            # The weights are kept so that their id cannot come to mean others.
            self._graphs[key] = (self._compile(task, layout), task.weights)
        return self._graphs[key][0], layout, form == "noise in graph"

    def _compile(self, task: Task, layout: torch.memory_format) -> Callable[..., Tensor]:
        forward = autoencoder_function(task, is_rewritten=self.is_rewritten, memory_format=layout)
        n_steps = task.n_steps

        def chain(x: Tensor, a: Tensor, d: Tensor, z: Tensor | None) -> Tensor:
            for step in range(n_steps):
                noise = torch.randn_like(x) if z is None else z[step]
                x = x + a[step] * (forward(x) - x) + d[step] * noise
            return x.clamp(LOW, HIGH)

        # Dynamo keeps its graphs with the code object and limits their number, so each chain gets its own.
        code = chain.__code__.replace(co_name=f"chain_{len(self._graphs)}")
        own = types.FunctionType(code, chain.__globals__, code.co_name, None, chain.__closure__)
        return torch.compile(own, fullgraph=True, dynamic=False)


def _schedule(task: Task) -> tuple[Tensor, Tensor]:
    return torch.tensor(task.step_sizes), torch.tensor(task.noise_scales)
