"""Modes of networks: evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(*models: Any) -> Iterator[None]:
    """Put modules into eval mode for a while: dropout would make the loss random and judge another model.

    Args:
        models: modules; anything else is passed over.
    """
    modules = [m for model in models if isinstance(model, nn.Module) for m in model.modules()]
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
