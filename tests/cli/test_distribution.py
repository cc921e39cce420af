"""sdist and wheels, with and without the extension: built, installed in an empty environment, used there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

from fastmalade import Purifier

pytestmark = pytest.mark.slow
SKIPPED = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "demo-output", "*.egg-info", "*.so", "__pycache__", "_build_info.json"
)
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _run(*command, **environment):
    ours = ("FASTMALADE_", "FORCE_CUDA", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    result = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**clean, **environment},
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources: building must not touch the tree that is being tested."""
    pytest.importorskip("build")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "fastmalade", ignore=SKIPPED)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """The sdist, and the wheel made from the sdist and nothing else."""
    out = tmp_path_factory.mktemp("dist")
    # CUDA kernels, wide instruction sets and the optimiser take long and have tests of their own.
    options = {"FASTMALADE_NO_CUDA": "1", "FASTMALADE_CPU_ISAS": "baseline"}
    if COMPILER is not None:
        unoptimised = tmp_path_factory.mktemp("bin") / "c++"
        unoptimised.write_text(f'#!/bin/sh\nexec {COMPILER} "$@" -O0\n')
        unoptimised.chmod(0o755)
        options["CXX"] = str(unoptimised)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, **options)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel_without_extension(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, tree)
    _run(*command, FASTMALADE_NO_EXTENSION="1")
    return next(out.glob("*.whl"))


def _install(wheel, folder):
    """An environment with this wheel and, behind it, the packages of the one that runs the tests."""
    _run(sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    # Paths in a .pth file are searched after the environment's own, and .pth files in those are not read, so an
    # editable fastmalade there is not found.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "behind.pth").write_text("\n".join(sorted(paths)) + "\n")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    find = "import importlib.util; print(importlib.util.find_spec('fastmalade').origin)"
    where = _run(python, "-c", find).stdout.strip()
    assert Path(where).is_relative_to(folder), where
    return folder / "bin" / "fastmalade"


def _purify(command, model_path, folder):
    images = np.random.default_rng(0).random((17, 28, 28), np.float32)
    np.save(folder / "in.npy", images)
    _run(command, "purify", folder / "in.npy", folder / "out.npy", "--model", model_path, "--seed", 3)
    expected = Purifier.from_pretrained(model_path, backend="torch").purify(images, seed=3)
    result = np.load(folder / "out.npy")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=5e-6, rtol=0)


def test_contents(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        source_names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wheel_names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "fastmalade").rglob("*.py")}
    package |= {str(path.relative_to(ROOT)) for path in (ROOT / "fastmalade").rglob("*.safetensors")}
    package |= {"fastmalade/py.typed", "fastmalade/data/mnist_test_sample.npz"}
    package |= {f"fastmalade/{path.relative_to(ROOT)}" for path in (ROOT / "kernels" / "triton").glob("*.py")}
    assert not package - wheel_names
    sources = (path for suffix in ("h", "cpp", "cu", "cuh") for path in ROOT.glob(f"kernels/**/*.{suffix}"))
    native = {str(path.relative_to(ROOT)) for path in sources}
    native |= {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.*")}
    native |= {str(path.relative_to(ROOT)) for path in ROOT.glob("kernels/triton/*.py")}
    package = {name for name in package if not name.startswith("fastmalade/kernels/triton")}
    assert not (package | native | {"setup.py", "README.md", "LICENSE"}) - source_names
    assert "fastmalade/_build_info.json" not in source_names
    assert "fastmalade/_build_info.json" in wheel_names
    assert not any(name.startswith(("tests/", "tools/")) for name in wheel_names)


def test_wheel(built, model_path, tmp_path):
    command = _install(built[1], tmp_path / "environment")
    facts = json.loads(_run(command, "info", "--json").stdout)
    if COMPILER is None:
        pytest.skip("no C++ compiler: the wheel has no extension, which the next test is about")
    assert facts["build"]["cpu"]["built"], facts["build"]["cpu"]["reason"]
    assert facts["build"]["cpu"]["isas"] == ["baseline"]
    assert facts["backends"]["cpu"] == {"usable": True, "reason": None}
    assert facts["backend_for_float32_on_cpu"] == "cpu"
    _purify(command, model_path, tmp_path)


def test_wheel_without_extension(wheel_without_extension, model_path, tmp_path):
    assert not any("_cpu." in name for name in zipfile.ZipFile(wheel_without_extension).namelist())
    command = _install(wheel_without_extension, tmp_path / "environment")
    facts = json.loads(_run(command, "info", "--json").stdout)
    assert facts["backend_for_float32_on_cpu"] == "torch"
    assert not facts["backends"]["cpu"]["usable"]
    assert "FASTMALADE_NO_EXTENSION" in facts["backends"]["cpu"]["reason"]
    _purify(command, model_path, tmp_path)
