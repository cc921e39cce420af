"""When a captured graph has gone stale: a value that changes with everything that a capture has frozen."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

_PLAIN = (int, float, bool, str, type(None), tuple)


def fingerprint(model: object) -> Hashable:
    """What a capture of a model has frozen: addresses of its tensors, modes, plain attributes, torch's own modes.

    Attributes that are lists or other objects (neither tensors of the module, nor plain values, nor frozen dataclasses)
    are not looked into: call ``GraphExecutor.clear`` after changing one.
    """
    modes = (
        torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), *_precisions(),
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        return modes, id(model)
    tensors = (*model.parameters(), *model.buffers())
    facts = []
    for module in model.modules():
        plain = (item for item in vars(module).items() if not item[0].startswith("_") and _is_plain(item[1]))
        facts.append((type(module), tuple((name, repr(value)) for name, value in plain)))
    return modes, tuple((t.data_ptr(), tuple(t.shape), t.dtype) for t in tensors), tuple(facts)


def _precisions() -> tuple[Hashable, ...]:
    """What float32 products on a GPU are computed in."""
    backends: Any = torch.backends
    settings = (backends, backends.cuda.matmul, backends.cudnn, *_parts(backends.cudnn))
    if all(hasattr(setting, "fp32_precision") for setting in settings):
        # Shows what was set by either interface; the older one raises once the newer has been used.
        return tuple(setting.fp32_precision for setting in settings)
    return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32


def _parts(cudnn: Any) -> tuple[Any, ...]:
    return tuple(getattr(cudnn, name, None) for name in ("conv", "rnn"))


def _is_plain(value: object) -> bool:
    frozen = getattr(type(value), "__dataclass_params__", None)
    return isinstance(value, _PLAIN) or bool(frozen and frozen.frozen)
