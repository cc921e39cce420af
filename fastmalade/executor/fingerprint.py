"""When a captured graph has gone stale: a value that changes with everything that a capture has frozen."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

_PLAIN = (int, float, bool, str, type(None), tuple)


def fingerprint(model: object) -> Hashable:
    """What a capture of a model has frozen: addresses of its tensors, modes, plain attributes, torch's own modes.

    Attributes that are lists or other objects (neither tensors of the module, nor plain values, nor frozen dataclasses)
    are not looked into: call ``GraphExecutor.clear`` after changing one.
    """
    cuda = torch.backends.cuda.matmul
    modes = (
        torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, cuda.allow_tf32,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        return modes, id(model)
    tensors = (*model.parameters(), *model.buffers())
    facts = []
    for module in model.modules():
        plain = (item for item in vars(module).items() if not item[0].startswith("_") and _is_plain(item[1]))
        facts.append((type(module), tuple((name, repr(value)) for name, value in plain)))
    return modes, tuple((t.data_ptr(), tuple(t.shape), t.dtype) for t in tensors), tuple(facts)


def _is_plain(value: object) -> bool:
    frozen = getattr(type(value), "__dataclass_params__", None)
    return isinstance(value, _PLAIN) or bool(frozen and frozen.frozen)
