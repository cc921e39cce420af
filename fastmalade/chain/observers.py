"""Whether anything besides the caller takes notice of an operator: autograd, compilers, modes, transformations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmalade.backends.arguments import PLAIN_TYPES

# Found once: an attribute of an attribute of torch takes as long as what it calls.
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_is_tracing = torch._C._is_tracing
_is_profiling = torch._C._autograd._profiler_enabled
transforms_active = torch._C._are_functorch_transforms_active


def is_transformed() -> bool:
    """Whether the caller is inside a transformation of torch.func or of forward-mode differentiation."""
    return transforms_active() or forward_ad._current_level >= 0


def refuse_transformations() -> None:
    """RuntimeError inside a transformation, for functions that look at values."""
    if is_transformed():
        raise RuntimeError(
            "purify: expected a call outside torch.func and forward-mode differentiation, because it checks values; "
            "call the module itself, purifier(x, seed=...), which they can transform"
        )


def is_unobserved(*tensors: Tensor | None, recorded: bool) -> bool:
    """Whether an operator on these could as well be called below the dispatcher: nothing would notice.

    That is: autograd records nothing, the tensors are plain ones, and no compiler, tracer, mode,
    transformation or profiler is at work. A call through the dispatcher into Python costs about as much as
    a tenth of a whole chain on one image.

    ``recorded``: whether autograd records what happens to tensors that require a gradient.
    """
    if (
        _is_compiling()
        or _dispatch_modes() > 0
        or _function_modes() > 0
        or _is_tracing()
        or _is_profiling()
        or transforms_active()
        or forward_ad._current_level >= 0  # as is_transformed, without a call
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in PLAIN_TYPES or (recorded and tensor.requires_grad)):
            return False
    return True
