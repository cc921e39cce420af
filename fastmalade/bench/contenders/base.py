"""What a contender is: one way to compute the chain that can be verified and timed."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from fastmalade.bench.task import Task

Chain = Callable[[np.ndarray], np.ndarray]
"""float32 (B, C, H, W) images in, purified images of the same shape out; fresh noise at every call."""


class Contender(ABC):
    """One library's way through the chain.

    A contender may have several forms of the same computation, such as noise drawn inside or outside its graph.
    The benchmark tries all of them on each batch size and keeps the fastest, so that no form has to be chosen here.

    Attributes:
        name: what ``--peers`` calls it.
        title: what tables call it.
        packages: distributions that it needs.
        modules: modules that it needs.
        forms: names of its forms, at least one.
        differentiable: whether :meth:`prepare_gradient` works.
        tolerance: largest allowed error of a noiseless chain against float64, beyond what torch float32 has.
        is_peer: whether it competes with the native chain.
        is_rewritten: whether its graph was rewritten by hand; see :mod:`fastmalade.bench.rewritten`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[tuple[str, ...]] = ("",)
    differentiable: ClassVar[bool] = False
    tolerance: float = 1e-4
    is_peer: ClassVar[bool] = True
    is_rewritten: bool = False

    @property
    def key(self) -> str:
        """Name in results: the class's name, with "-rewritten" for a rewritten graph."""
        return self.name + ("-rewritten" if self.is_rewritten else "")

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.title + (", rewritten" if self.is_rewritten else "")

    def unavailable_reason(self) -> str | None:
        """None if it can run here, else why it cannot."""
        missing = [name for name in self.modules if find_spec(name) is None]
        if missing:
            return f"needs {', '.join(missing)}, not installed here: pip install 'fastmalade[bench]'"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of the distributions that it uses."""
        return {name: importlib.metadata.version(name) for name in self.packages}

    @abstractmethod
    def prepare(self, task: Task, form: str) -> Chain:
        """Build everything that is built once, and return the function to time."""

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """As :meth:`prepare`, but the function returns the gradient of <cotangent, chain(images)> with respect to them.

        Raises:
            NotImplementedError: the contender has no gradient (``differentiable`` is False).
        """
        raise NotImplementedError(f"{self.key} has no gradient")


class Peer(Contender):
    """Another library.

    Args:
        is_rewritten: run the graph of :mod:`fastmalade.bench.rewritten` instead of the layers as they are.
    """

    def __init__(self, *, is_rewritten: bool = False) -> None:
        self.is_rewritten = is_rewritten
