"""The package without its compiled module, and what an import costs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastmalade

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "fastmalade._cpu":
            raise ImportError("blocked by the test")
        return None
sys.meta_path.insert(0, Blocked())
"""

USE = """
import torch, fastmalade
from fastmalade import backends
model = fastmalade.Purifier(fastmalade.Autoencoder(), fastmalade.ChainConfig(n_steps=2))
images = torch.rand(3, 1, 8, 8)
result = model.purify(images, seed=1)
assert result.shape == images.shape and bool(torch.isfinite(result).all())
assert not torch.equal(result, images)
leaf = images.clone().requires_grad_()
model(leaf).sum().backward()
assert leaf.grad.abs().max() > 0
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(fastmalade.__file__).parents[1])
    variables = {k: v for k, v in os.environ.items() if not k.startswith("FASTMALADE_")}
    paths = os.pathsep.join(p for p in (source, variables.get("PYTHONPATH")) if p)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**variables, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_import_and_purify_without_the_extension():
    check = """
reason = backends.available()["cpu"]
assert reason, "the extension should have been out of reach"
assert backends.available()["torch"] is None
assert torch.equal(result, model.purify(images, seed=1, backend="torch"))
try:
    model.purify(images, backend="cpu")
except fastmalade.BackendUnavailableError as error:
    assert "cpu" in str(error), error
else:
    raise AssertionError("a backend that cannot run must not fall back")
"""
    done = run(BLOCK + USE + check)
    assert done.returncode == 0, done.stderr


@pytest.mark.repetition
def test_environment_forces_the_torch_backend():
    check = 'assert torch.equal(result, model.purify(images, seed=1, backend="torch"))'
    done = run(USE + check, FASTMALADE_BACKEND="torch")
    assert done.returncode == 0, done.stderr


def test_import_is_light():
    done = run(
        """
        import sys, fastmalade
        heavy = {"rich", "typer", "matplotlib", "PIL", "foolbox", "art", "fastmalade.training"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert callable(fastmalade.train_classifier)
        """
    )
    assert done.returncode == 0, done.stderr


def test_public_names():
    for name in fastmalade.__all__:
        assert getattr(fastmalade, name) is not None
        assert name in dir(fastmalade)
    assert fastmalade.__version__.split(".")[0].isdigit()
    assert not hasattr(fastmalade, "no_such_name")
