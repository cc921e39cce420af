"""Whether anything besides the caller takes notice of an operator: autograd, compilers, modes, transformations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_transformed() -> bool:
    """Whether the caller is inside a transformation of torch.func or of forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_unobserved(*tensors: Tensor | None, recorded: bool) -> bool:
    """Whether an operator on these could as well be called below the dispatcher: nothing would notice.

    That is: autograd records nothing, the tensors are plain ones, and no compiler, tracer, mode,
    transformation or profiler is at work. A call through the dispatcher into Python costs about as much as
    a tenth of a whole chain on one image.

    ``recorded``: whether autograd records what happens to tensors that require a gradient.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
        or is_transformed()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or (recorded and tensor.requires_grad)):
            return False
    return True
