"""The CUDA backend of the package over the emulation of its kernels."""

from __future__ import annotations

import contextlib

import emulated
import pytest
import torch

from fastmalade import backends
from fastmalade.backends.cuda import calls as cuda
from fastmalade.backends.cuda import extension as cuda_extension


@pytest.fixture
def on_emulation(emulation, monkeypatch) -> emulated.Emulation:
    """The backend "cuda" of the package over the emulation, for tensors on the CPU."""
    monkeypatch.setattr(cuda_extension, "_extension", emulated.Extension(emulation))
    monkeypatch.setattr(cuda, "_check_device", lambda x: None)
    monkeypatch.setattr(cuda, "_stream", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(backends, "_obstacle", lambda *arguments: None)
    return emulation
