"""The Triton backend where it cannot run: what it says, and that nothing else steps in."""

from __future__ import annotations

import pytest
import torch

import fastmalade
from fastmalade import backends
from fastmalade.backends import BackendUnavailableError
from fastmalade.backends.triton import calls as triton
from fastmalade.backends.values import NoiseSource, Step

CPU = torch.device("cpu")


def test_without_a_device_or_the_interpreter(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: object())
    reason = triton.unavailable_reason()
    assert "no CUDA device" in reason
    assert "TRITON_INTERPRET=1" in reason
    assert backends.available()["triton"] == reason
    with pytest.raises(BackendUnavailableError, match="the triton backend cannot run: PyTorch sees no CUDA device"):
        triton.standard_normal(1, torch.arange(2), 0, 4)
    with pytest.raises(BackendUnavailableError, match=r"backend 'triton' \(argument\) cannot compute this: .*no CUDA"):
        backends.resolve("triton", device=CPU, dtype=torch.float32)
    monkeypatch.setenv("FASTMALADE_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="environment variable FASTMALADE_BACKEND"):
        fastmalade.langevin_chain(torch.rand(1, 1, 4, 4), torch.sin, [0.1], [0.1])


def test_without_triton(monkeypatch) -> None:
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert triton.unavailable_reason() == "the package triton is not installed"


def test_devices(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert triton.unavailable_reason() == "expected a device of compute capability 8.0 or newer, got 7.5"
    cuda = torch.device("cuda")
    assert backends.resolve(None, device=cuda, dtype=torch.float32) == "torch"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert triton.unavailable_reason() is None
    assert backends.resolve(None, device=cuda, dtype=torch.float32) == "triton"
    assert backends.resolve(None, device=cuda, dtype=torch.float64) == "torch"
    assert backends.resolve("torch", device=cuda, dtype=torch.float32) == "torch"
    with pytest.raises(BackendUnavailableError, match="expected tensors on the cuda, got cpu"):
        backends.resolve("triton", device=CPU, dtype=torch.float32)
    with pytest.raises(BackendUnavailableError, match="expected tensors on a CUDA device, got cpu"):
        triton.langevin_update(torch.rand(1, 4), torch.rand(1, 4), Step(0, 0.1, 0.1, 0.0, 1.0), NoiseSource(1))
