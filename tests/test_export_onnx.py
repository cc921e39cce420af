"""Purifiers as ONNX files, run by ONNX Runtime on real digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastmalade
from fastmalade import Autoencoder, ChainConfig, Purifier, export_onnx
from fastmalade.data import embedded_tensors

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOLERANCE = 2e-5


def drawn(purifier: Purifier, seed: int, ids: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([fastmalade.standard_normal(seed, ids, t, shape) for t in range(purifier.chain.n_steps)])


def run(path, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fed = {"x": x.numpy()} if noise is None else {"x": x.numpy(), "noise": noise.numpy()}
    assert {entry.name for entry in session.get_inputs()} == set(fed)
    (found,) = session.run(["purified"], fed)
    return torch.from_numpy(found)


def small(name: str) -> tuple[Purifier, tuple[int, int, int]]:
    """Purifiers of every kind that has its own way through the exporter."""
    generator = torch.Generator().manual_seed(0)
    autoencoder = Autoencoder(3, (4, 5), generator=generator).requires_grad_(False).eval()
    chain = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)
    if name == "pruned":
        with torch.random.fork_rng():
            prune.random_unstructured(autoencoder.conv2, "weight", amount=0.5)
    r: nn.Module = autoencoder
    if name == "user":
        r = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.5), nn.Sigmoid()).train()
        for parameter in r.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)
    if name == "no noise":
        chain = chain.replace(noise_scale=0.0)
    if name == "every step":
        chain = chain.replace(clamp="every_step", decay=0.5)
    value_range = (-1.0, 2.0) if name == "value range" else (0.0, 1.0)
    return Purifier(r, chain, value_range=value_range), (3, 8, 12)


@pytest.mark.parametrize("name", ["malade-mnist", "mala-mnist"])
def test_shipped_purifiers_on_digits(tmp_path, name):
    purifier, digits = Purifier.from_pretrained(name), embedded_tensors()[0]
    export_onnx(purifier, tmp_path / "chain.onnx", image_shape=(1, 28, 28))
    for batch in (1, 2, 7, 33):
        x, ids = digits[:batch], torch.arange(batch) * 5
        noise = drawn(purifier, 11, ids, (1, 28, 28))
        found = run(tmp_path / "chain.onnx", x, noise)
        torch.testing.assert_close(found, purifier(x, seed=11, sample_ids=ids), rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(found, purifier(x, noise=noise), rtol=0, atol=TOLERANCE)
    assert (found - x).abs().max() > 0.1


@pytest.mark.parametrize("name", ["plain", "pruned", "user", "no noise", "every step", "value range"])
def test_every_kind_of_purifier(tmp_path, name):
    purifier, shape = small(name)
    modes = [module.training for module in purifier.autoencoder.modules()]
    export_onnx(purifier, tmp_path / "chain.onnx", image_shape=shape)
    assert [module.training for module in purifier.autoencoder.modules()] == modes
    purifier.autoencoder.eval()
    low, high = purifier.value_range
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1)) * (high - low) + low
    noise = drawn(purifier, 2**64 - 1, torch.arange(5), shape)
    with torch.no_grad():
        expected = purifier(x, noise=noise)
    found = run(tmp_path / "chain.onnx", x, None if name == "no noise" else noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_arguments_are_checked_and_nothing_is_left(tmp_path, monkeypatch):
    purifier, shape = small("plain")
    path = tmp_path / "chain.onnx"
    with pytest.raises(TypeError, match=r"expected a fastmalade.Purifier, got Autoencoder"):
        export_onnx(purifier.autoencoder, path, image_shape=shape)
    with pytest.raises(TypeError, match="expected an autoencoder that is a module, got function"):
        export_onnx(Purifier(lambda x: x, purifier.chain), path, image_shape=shape)
    for wrong in ((8, 12), (3, 0, 12), (3, 8, 13), (1, 8, 12)):
        with pytest.raises(ValueError, match="expected"):
            export_onnx(purifier, path, image_shape=wrong)
    with pytest.raises(ValueError, match=r"expected parameters of torch.float32 on cpu, got torch.float64"):
        export_onnx(Purifier(Autoencoder().double(), purifier.chain), path, image_shape=(1, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastmalade\[export\]'"):
        export_onnx(purifier, path, image_shape=shape)
    assert list(tmp_path.iterdir()) == []


def test_the_file_holds_the_weights_once(tmp_path):
    purifier = Purifier.from_pretrained("malade-mnist")
    export_onnx(purifier, tmp_path / "chain.onnx", image_shape=(1, 28, 28))
    weights = sum(parameter.numel() * 4 for parameter in purifier.parameters())
    assert (tmp_path / "chain.onnx").stat().st_size < 2 * weights + 100_000
    assert isinstance(np.frombuffer((tmp_path / "chain.onnx").read_bytes(), np.uint8), np.ndarray)
