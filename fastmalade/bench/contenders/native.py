"""This package's "cpu" backend as a user calls it: ``Purifier.forward`` with a fresh seed, dispatch included."""

from __future__ import annotations

import os

import numpy as np
import torch

from fastmalade import backends
from fastmalade.bench.contenders.base import Chain, Contender
from fastmalade.bench.task import Task, autoencoder_of
from fastmalade.purifier import Purifier

ISA_VARIABLE = "FASTMALADE_CPU_ISA"


class Native(Contender):
    """The native chain, with the widest instruction set or with the one given."""

    name = "native"
    title = "native"
    differentiable = True
    tolerance = 1e-6
    is_peer = False

    def __init__(self, isa: str | None = None) -> None:
        self.isa = isa

    @property
    def key(self) -> str:
        """ "native", or "native[isa]" where an instruction set was asked for."""
        return self.name if self.isa is None else f"{self.name}[{self.isa}]"

    @property
    def label(self) -> str:
        """The same in tables."""
        return self.key

    def unavailable_reason(self) -> str | None:
        """Why the extension, or the instruction set, cannot be used; None if it can."""
        reason = backends.available()["cpu"]
        if reason is not None or self.isa is None or self.isa in backends.cpu.isas_supported():
            return reason
        supported = ", ".join(backends.cpu.isas_supported())
        return f"instruction set: expected one of {supported} on this machine, got {self.isa!r}"

    def isa_in_use(self) -> str:
        """The instruction set that it computes with."""
        return self.isa or backends.cpu.isa_in_use()

    def prepare(self, task: Task, form: str) -> Chain:
        """``Purifier.forward`` without gradient."""
        purifier = Purifier(autoencoder_of(task), task.chain, backend="cpu")

        def run(images: np.ndarray) -> np.ndarray:
            self._force_isa()
            with torch.no_grad():
                return purifier(torch.from_numpy(images)).numpy()

        return run

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """Forward and backward through the registered operator."""
        purifier = Purifier(autoencoder_of(task), task.chain, backend="cpu")
        seed = torch.from_numpy(cotangent)

        def run(images: np.ndarray) -> np.ndarray:
            self._force_isa()
            x = torch.from_numpy(images).requires_grad_()
            return torch.autograd.grad(purifier(x), x, seed)[0].numpy()

        return run

    def _force_isa(self) -> None:
        # The backend reads the variable at each call, and several native contenders may take turns.
        if self.isa is None:
            return
        if os.environ.get(ISA_VARIABLE) != self.isa:
            os.environ[ISA_VARIABLE] = self.isa
