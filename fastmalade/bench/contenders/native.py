"""This package's "cpu" backend as a user calls it: ``Purifier.forward`` with a fresh seed, dispatch included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fastmalade import backends
from fastmalade.bench.contenders.base import Chain, Contender
from fastmalade.bench.task import Task, autoencoder_of
from fastmalade.defenses.purifier import Purifier

ISA_VARIABLE = "FASTMALADE_CPU_ISA"


class Native(Contender):
    """The native chain, with the widest instruction set and all threads of the run, or with those given."""

    name = "native"
    title = "native"
    differentiable = True
    tolerance = 1e-6
    is_peer = False

    def __init__(self, isa: str | None = None, *, threads: int | None = None) -> None:
        self.isa = isa
        self.threads = threads

    @property
    def key(self) -> str:
        """ "native", or "native[isa]" or "native[1 thread]" where those were asked for."""
        asked = [self.isa] if self.isa is not None else []
        if self.threads is not None:
            asked.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return f"{self.name}[{', '.join(asked)}]" if asked else self.name

    @property
    def label(self) -> str:
        """The same in tables."""
        return self.key

    def unavailable_reason(self) -> str | None:
        """Why the extension, or the instruction set, cannot be used; None if it can."""
        reason = backends.available()["cpu"]
        if reason is not None or self.isa is None or self.isa in backends.cpu.calls.isas_supported():
            return reason
        supported = ", ".join(backends.cpu.calls.isas_supported())
        return f"instruction set: expected one of {supported} on this machine, got {self.isa!r}"

    def isa_in_use(self) -> str:
        """The instruction set that it computes with."""
        return self.isa or backends.cpu.calls.isa_in_use()

    def prepare(self, task: Task, form: str) -> Chain:
        """``Purifier.forward`` without gradient."""
        purifier = Purifier(autoencoder_of(task), task.chain, backend="cpu")

        def run(images: np.ndarray) -> np.ndarray:
            self._force_isa()
            with self._on_threads(), torch.no_grad():
                return purifier(torch.from_numpy(images)).numpy()

        return run

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """Forward and backward through the registered operator."""
        purifier = Purifier(autoencoder_of(task), task.chain, backend="cpu")
        seed = torch.from_numpy(cotangent)

        def run(images: np.ndarray) -> np.ndarray:
            self._force_isa()
            x = torch.from_numpy(images).requires_grad_()
            with self._on_threads():
                return torch.autograd.grad(purifier(x), x, seed)[0].numpy()

        return run

    @contextmanager
    def _on_threads(self) -> Iterator[None]:
        # Half a microsecond where it changes anything, beside the 80 of the fastest call.
        before = torch.get_num_threads()
        if self.threads is None or self.threads == before:
            yield
            return
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _force_isa(self) -> None:
        # The backend reads the variable at each call, and several native contenders may take turns.
        if self.isa is None:
            return
        if os.environ.get(ISA_VARIABLE) != self.isa:
            os.environ[ISA_VARIABLE] = self.isa
