"""The extension and backend of CUDA on a machine without a GPU: they load, choose, and say what is missing."""

from __future__ import annotations

import importlib
import json
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastmalade.backends import extensions
from fastmalade.backends.cuda import calls as cuda
from fastmalade.backends.cuda import extension as cuda_extension
from fastmalade.backends.extensions import BackendUnavailableError
from fastmalade.backends.values import NoiseSource, Steps

DIGIT = [1, 28, 28, 10, 25]
H200, A100 = (132, 227 * 1024, 8), (108, 163 * 1024, 1)


@pytest.fixture
def extension() -> ModuleType:
    try:
        return importlib.import_module("fastmalade._cuda")
    except ModuleNotFoundError as error:
        pytest.skip(f"no CUDA extension in this build: {error}")


def choice(extension, device, sizes, batch, *, gradient=False, form="auto", images=0, cluster=0) -> dict:
    request = extension.Request(form=form, images=images, cluster=cluster)
    return extension.choice_for(extension.DeviceFacts(*device), sizes, batch, gradient, request)


def test_it_loads_without_a_driver_and_says_what_is_missing(extension) -> None:
    if torch.cuda.is_available():
        assert cuda.unavailable_reason() is None
        return
    count, why = extension.device_count()
    assert count <= 0
    reason = cuda.unavailable_reason()
    assert reason is not None
    assert ("driver" in reason) if count < 0 else ("no GPU" in reason)
    assert why in reason


def test_the_reasons_are_told_apart(monkeypatch, tmp_path) -> None:
    def fake(count: int, why: str = "", missing: str = "") -> SimpleNamespace:
        facts = {"name": "G", "capability": (7, 5), "missing_code": missing}
        return SimpleNamespace(device_count=lambda: (count, why), device=lambda index: facts, architectures="sm_90")

    for extension, expected in (
        (fake(-1, "cudaErrorInsufficientDriver, too old"), "no working CUDA driver on this machine (cudaErrorInsuff"),
        (fake(0), "finds no GPU"),
        (fake(1, missing="cudaErrorNoKernelImageForDevice"), "code for sm_90, not for the G of capability 7.5"),
        (fake(1), None),
    ):
        monkeypatch.setattr(cuda_extension, "_extension", extension)
        monkeypatch.setattr(cuda_extension, "_usable", set())
        reason = cuda.unavailable_reason()
        assert (reason is None) if expected is None else (expected in reason)
    assert "from 0 to 0, got 3" in cuda.unavailable_reason(3)


def test_a_build_without_it_says_why(monkeypatch, tmp_path) -> None:
    def missing(name: str, *rest: object) -> ModuleType:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_extension, "_extension", None)
    monkeypatch.setattr(extensions.importlib, "import_module", missing)
    monkeypatch.setattr(extensions, "__file__", str(tmp_path / "fastmalade" / "backends" / "extensions.py"))
    (tmp_path / "fastmalade").mkdir()
    assert "No module named 'fastmalade._cuda'" in cuda.unavailable_reason()
    record = {"cuda": {"built": False, "reason": "nvcc was not there at build time"}}
    (tmp_path / "fastmalade" / "_build_info.json").write_text(json.dumps(record))
    assert "not built: nvcc was not there" in cuda.unavailable_reason()
    with pytest.raises(BackendUnavailableError, match="nvcc was not there"):
        cuda.langevin_chain(torch.zeros(1, 1, 4, 4), [], Steps((), (), (), ()), NoiseSource(0))


def test_tensors_elsewhere_are_refused(extension) -> None:
    with pytest.raises(ValueError, match="expected tensors on a cuda device, got cpu"):
        cuda.langevin_chain(torch.zeros(1, 1, 4, 4), [], Steps((), (), (), ()), NoiseSource(0))
    with pytest.raises(ValueError, match="expected tensors on a cuda device, got cpu"):
        cuda.standard_normal(0, torch.arange(2), 0, 4)


@pytest.mark.parametrize(("batch", "form", "images"), [(1, "cluster", 1), (16, "cluster", 1), (256, "digits", 4),
                                                       (4096, "digits", 8), (65536, "digits", 8)])  # fmt: skip
def test_the_form_follows_the_batch(extension, batch: int, form: str, images: int) -> None:
    found = choice(extension, H200, DIGIT, batch)
    assert (found["form"], found["images"]) == (form, images)
    assert found["shared_bytes"] <= H200[1]
    assert found["blocks"] <= H200[0]


def test_other_devices_and_shapes(extension) -> None:
    # Without clusters, whatever the batch: the forms of one block to a group.
    for batch, images in [(1, 4), (55, 4), (65536, 4)]:
        found = choice(extension, A100, DIGIT, batch)
        assert (found["form"], found["images"], found["cluster"]) == ("digits", images, 1)
        assert found["blocks"] <= A100[0]
    assert choice(extension, A100, DIGIT, 1, gradient=True)["form"] == "digits"
    assert choice(extension, A100, [1, 4, 4, 1, 2], 1)["form"] == "general"
    # A shape that one block holds and a cluster does not, which keeps one plane more.
    large = [1, 64, 64, 20, 25]
    for device in (A100, H200):
        assert choice(extension, device, large, 1)["form"] == "general"
    found = choice(extension, A100, DIGIT, 65536)
    assert (found["images"], found["blocks"], found["resident"]) == (4, 108, True)
    assert choice(extension, H200, [3, 64, 64, 10, 25], 4096)["form"] == "general"
    assert not choice(extension, H200, DIGIT, 4096, gradient=True)["resident"]
    with pytest.raises(ValueError, match="images of 3x224x224"):
        choice(extension, H200, [3, 224, 224, 10, 25], 1)
    with pytest.raises(ValueError, match="expected general or cluster for this shape, got digits"):
        choice(extension, H200, [1, 32, 32, 10, 25], 1, form="digits")
    with pytest.raises(ValueError, match="expected digits or general on this device, got cluster"):
        choice(extension, A100, DIGIT, 1, form="cluster")
    with pytest.raises(ValueError, match="a multiple of 4, got 30"):
        choice(extension, H200, [1, 30, 28, 10, 25], 1)
    with pytest.raises(ValueError, match="auto, digits, general, cluster or tensor, got fast"):
        choice(extension, H200, DIGIT, 1, form="fast")


def test_a_launch_without_a_driver_raises_cudas_own_words(extension) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    noise, quiet = extension.NoiseSource(), {"number": 0, "step_size": 0.1, "noise_scale": 0.0}
    with pytest.raises(RuntimeError, match=r"cudaError\w+, "):
        extension.langevin_update(0, 0, 1, 4, 16, 16, extension.Step(**quiet, low=0.0, high=1.0), noise, 16)
    with pytest.raises(ValueError, match="low <= high"):
        extension.Step(**quiet, low=1.0, high=0.0)
