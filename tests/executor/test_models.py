"""What is captured for purifiers and defended classifiers, and when ``purify`` uses it."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from fastmalade import Autoencoder, BackendUnavailableError, ChainConfig, DefendedClassifier, Purifier, backends
from fastmalade.executor import GraphExecutor, chains
from fastmalade.executor.fingerprint import fingerprint


class Blur(nn.Module):
    """A user's own r(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.strength = 0.5

    def forward(self, x):
        return self.strength * torch.sigmoid(self.convolution(x))


CONFIG = ChainConfig(n_steps=3, step_size=0.3, noise_scale=0.1, clamp="every_step")


@pytest.fixture
def purifier() -> Purifier:
    return Purifier(Blur(), CONFIG, backend="torch").requires_grad_(False).eval()


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("autoencoder", [Blur, lambda: Autoencoder(1, (2, 3))])
def test_of_purifier_is_the_purifier(capture, autoencoder, value_range) -> None:
    purifier = Purifier(autoencoder(), CONFIG, value_range=value_range, backend="torch").requires_grad_(False)
    executor = GraphExecutor.of_purifier(purifier, buckets=(4,), capture=capture)
    x = torch.rand(3, 1, 8, 8)
    for seed, ids in ((5, None), (2**64 - 1, [4, 9, 2**63])):
        torch.testing.assert_close(
            executor(x, seed=seed, sample_ids=ids), purifier(x, seed=seed, sample_ids=ids), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("n_chains", [1, 3])
def test_of_classifier_is_the_classifier(capture, purifier, n_chains: int) -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x = torch.rand(3, 1, 8, 8)
    for vote in ("mean", "majority"):
        for fixed in (None, 2**63 + 1):
            defended = DefendedClassifier(purifier, classifier, n_chains=n_chains, vote=vote, seed=fixed)
            executor = GraphExecutor.of_classifier(defended, buckets=(4,), capture=capture)
            seed = None if fixed else 7
            with torch.no_grad():
                expected = defended(x, seed=seed, sample_ids=[1, 5, 6])
            torch.testing.assert_close(executor(x, seed=seed, sample_ids=[1, 5, 6]), expected, rtol=0, atol=1e-5)


def test_everything_that_a_capture_freezes_changes_the_fingerprint(purifier) -> None:
    model = purifier.autoencoder
    seen = [fingerprint(model)]
    assert fingerprint(model) == seen[0]
    with torch.no_grad():
        model.convolution.weight.add_(1.0)
    assert fingerprint(model) == seen[0]  # read at each replay

    def note() -> None:
        seen.append(fingerprint(model))
        assert len(set(seen)) == len(seen)

    model.strength = 0.25
    note()
    old = model.convolution.weight
    model.convolution.weight = nn.Parameter(old.clone())
    note()
    model.train()
    note()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
    note()
    torch.set_float32_matmul_precision(before)
    model.convolution = nn.Sequential(model.convolution)
    note()


def graphed(purifier, images, capture, config=CONFIG, backend="torch", seed=3):
    return chains.purify_in_graph(purifier, images, config, backend, seed=seed, sample_ids=None, capture=capture)


def test_purify_in_a_graph(purifier, capture) -> None:
    x = torch.rand(3, 1, 8, 8)
    expected = purifier.purify(x, seed=3)
    for _ in range(2):
        torch.testing.assert_close(graphed(purifier, x, capture), expected, rtol=0, atol=1e-6)
    assert capture.calls.count("capture") == 1
    graphed(purifier, x, capture, CONFIG.replace(n_steps=2))
    assert capture.calls.count("capture") == 2
    purifier.autoencoder.strength = 0.1
    result = graphed(purifier, x, capture)
    torch.testing.assert_close(result, purifier.purify(x, seed=3), rtol=0, atol=1e-6)
    assert (result - expected).abs().max() > 1e-3


def test_when_purify_uses_no_graph(purifier, capture) -> None:
    x = torch.rand(2, 1, 8, 8)
    assert graphed(purifier, x, None) is None
    assert graphed(purifier, x, capture, CONFIG.replace(n_steps=0)) is None
    assert graphed(purifier, x[:0], capture) is None
    model = purifier.autoencoder
    model.train()
    assert "training mode" in chains.why_not_captured(purifier, x, capture)
    model.eval()
    handle = model.convolution.register_forward_hook(lambda *_: None)
    assert "hooks" in chains.why_not_captured(purifier, x, capture)
    handle.remove()
    assert chains.why_not_captured(purifier, x, capture) is None
    function = Purifier(torch.sin, CONFIG, backend="torch")
    assert "no module" in chains.why_not_captured(function, x, capture)
    assert "CUDA device, got cpu" in chains.why_not_captured(purifier, x)
    with torch.profiler.profile():
        assert "profiler" in chains.why_not_captured(purifier, x, capture)
    assert capture.calls == []


def test_a_model_that_cannot_be_captured_is_reported_once(purifier, capture) -> None:
    x = torch.rand(2, 1, 8, 8)
    capture.fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(RuntimeWarning, match=r"without CUDA graphs.*operation not permitted") as warned:
        assert graphed(purifier, x, capture) is None
    assert len(warned) == 1
    assert graphed(purifier, x, capture) is None
    assert capture.calls == ["capture"]
    assert "not permitted" in chains.why_not_captured(purifier, x, capture)


def test_errors_of_the_model_are_its_own(capture) -> None:
    class Wrong(nn.Module):
        def forward(self, x):
            return x[:, :, 1:]

    with pytest.raises(ValueError, match="expected an output of the shape of its input"):
        graphed(Purifier(Wrong(), CONFIG, backend="torch").eval(), torch.rand(1, 1, 8, 8), capture)


def test_graphs_go_with_their_purifier(purifier, capture) -> None:
    x = torch.rand(1, 1, 8, 8)
    clone = copy.deepcopy(purifier)
    graphed(clone, x, capture)
    gone, model = weakref.ref(clone), weakref.ref(clone.autoencoder)
    del clone
    gc.collect()
    assert gone() is None
    assert model() is None


def test_the_precision_inside_a_graph_is_the_purifiers(purifier) -> None:
    # The backend of these tests is torch's, which has one precision: what it says shows what it was asked for.
    purifier.precision = "tf32"
    run = purifier.forward_from_device
    with pytest.raises(ValueError, match="precision: expected fp32 on the backend torch, got 'tf32'"):
        run(torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), torch.arange(1))


def test_backends_inside_a_graph(monkeypatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert chains.graph_backend("torch", cpu, torch.float32) == "torch"
    if backends.available()["cpu"] is None:
        # A seed that is an argument of the call cannot be one of a replay.
        with pytest.raises(BackendUnavailableError, match="expected one of cuda, triton, torch in a CUDA graph"):
            chains.graph_backend("cpu", cpu, torch.float32)
        assert chains.graph_backend(None, cpu, torch.float32) == "torch"
    assert chains.graph_backend(None, cuda, torch.float64) == "torch"


PRECISIONS = """
import torch
from torch import nn
from fastmalade.executor.fingerprint import fingerprint

model, b = nn.Conv2d(1, 1, 1), torch.backends
seen = [fingerprint(model)]
if not hasattr(b, "fp32_precision"):
    print("older torch")
    raise SystemExit
torch.set_float32_matmul_precision("high")  # the older interface first
seen.append(fingerprint(model))
for owner in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.cudnn, b):
    for value in ("tf32", "ieee"):
        if owner.fp32_precision != value:
            owner.fp32_precision = value
            seen.append(fingerprint(model))
assert all(a != b for a, b in zip(seen, seen[1:])), seen
print("changed", len(seen))
"""


def test_precisions_set_by_torchs_newer_interface() -> None:
    """In a process of its own: once the newer interface was used the older one raises."""
    done = subprocess.run([sys.executable, "-c", PRECISIONS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("changed", "older torch"))


def test_purify_after_tf32_by_the_newer_interface() -> None:
    program = (
        "import torch, fastmalade; torch.backends.cuda.matmul.fp32_precision = 'tf32'; "
        "fastmalade.purify(torch.rand(1, 1, 28, 28)); from fastmalade.executor.fingerprint import fingerprint; "
        "fingerprint(torch.nn.Linear(1, 1))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
