"""Modes of networks for a while: evaluation, and parameters as constants."""

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


@contextmanager
def gradients_off(*models: Any) -> Iterator[None]:
    """Take the parameters of modules as constants for a while: a gradient of the images alone takes half the time.

    Args:
        models: modules; anything else is passed over.
    """
    parameters = [p for model in models if isinstance(model, nn.Module) for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
