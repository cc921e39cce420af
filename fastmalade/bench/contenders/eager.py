"""PyTorch eager, with in-place updates and noise from ``torch.randn``, in both memory formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastmalade import reference
from fastmalade.bench import rewritten
from fastmalade.bench.contenders.base import Chain, Peer
from fastmalade.bench.task import HIGH, LOW, Task, differentiable_chain


class Eager(Peer):
    """Contiguous tensors."""

    name = "eager"
    title = "PyTorch eager"
    packages = ("torch",)
    differentiable = True
    memory_format = torch.contiguous_format

    def prepare(self, task: Task, form: str) -> Chain:
        """Under inference mode; the state is one buffer that is updated in place."""
        forward = autoencoder_function(task, is_rewritten=self.is_rewritten, memory_format=self.memory_format)
        schedule = list(zip(task.step_sizes, task.noise_scales, strict=True))

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x = torch.from_numpy(images).clone(memory_format=self.memory_format)
                z = torch.empty_like(x)
                for a, d in schedule:
                    x.add_(forward(x).sub_(x), alpha=a)
                    x.add_(torch.randn(x.shape, out=z), alpha=d)
                return x.clamp_(LOW, HIGH).contiguous().numpy()

        return run

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """Autograd through all steps."""
        forward = autoencoder_function(task, is_rewritten=self.is_rewritten, memory_format=self.memory_format)
        seed = torch.from_numpy(cotangent)

        def run(images: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(images).contiguous(memory_format=self.memory_format).requires_grad_()
            return torch.autograd.grad(differentiable_chain(task, x, forward), x, seed)[0].contiguous().numpy()

        return run


class EagerChannelsLast(Eager):
    """Weights and images in channels-last memory format."""

    name = "eager-channels-last"
    title = "PyTorch eager, channels last"
    memory_format = torch.channels_last


def autoencoder_function(
    task: Task, *, is_rewritten: bool, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[Tensor], Tensor]:
    """r(x) in torch with the task's weights laid out in ``memory_format``."""
    if is_rewritten:
        return rewritten.forward_function(rewritten.rewrite(task.weights, *task.shape[1:]))
    weights = [w.contiguous(memory_format=memory_format) if w.dim() == 4 else w for w in task.weights]
    return lambda x: reference.autoencoder_forward(x, weights)
