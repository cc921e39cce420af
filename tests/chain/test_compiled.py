"""torch.compile over many seeds, and packages of AOTInductor."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

import fastmalade
from fastmalade import ChainConfig, DefendedClassifier, Purifier

CHAIN = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)
SEEDS = (1, 2, 3, 0, 7, 12345, 2**31, 2**40, 2**63 - 1, 2**63, 2**63 + 5, 2**64 - 1, 99)


@pytest.fixture
def counting():
    """A compiler's backend that counts its graphs."""
    torch._dynamo.reset()
    graphs = []

    def compiled(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    yield compiled, graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["native", "user", "defended", "apudae-direct"])
def test_one_graph_for_many_seeds(make_autoencoder, make_defense, make_images, fit_softmax, counting, kind):
    compiler, graphs = counting
    x, autoencoder = make_images(2, 1, 28, 28), make_autoencoder().requires_grad_(False)
    if kind == "user":
        model = Purifier(torch.nn.Sequential(autoencoder), CHAIN)
    else:
        model = make_defense(kind) if kind == "apudae-direct" else Purifier(autoencoder, CHAIN)
    if kind == "defended":
        model = DefendedClassifier(model, fastmalade.load_classifier("mnist-c")).eval()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for seed in SEEDS:
        torch.testing.assert_close(compiled(x, seed=seed), model(x, seed=seed), rtol=0, atol=1e-5)
    assert len(graphs) <= 3  # the first seed, any seed, and those whose bits are a negative int64


def test_a_wrong_seed_is_an_error_when_compiled_too(make_autoencoder, make_images, counting):
    model = Purifier(make_autoencoder().requires_grad_(False), CHAIN)
    compiled = torch.compile(model, backend=counting[0])
    for seed in (1, 2, 3):
        compiled(make_images(1, 1, 8, 8), seed=seed)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            compiled(make_images(1, 1, 8, 8), seed=seed)


LOAD = """
import sys, torch
if sys.argv[1] == "with":
    import fastmalade
model = torch._inductor.aoti_load_package(sys.argv[2])
x = torch.load(sys.argv[3])
with torch.no_grad():
    print("max", float((model(x) - torch.load(sys.argv[4])).abs().max()))
"""


class Seeded(torch.nn.Module):
    def __init__(self, purifier):
        super().__init__()
        self.purifier = purifier

    def forward(self, x):
        return self.purifier(x, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shipped", "user"])
def test_aotinductor_packages_load(make_images, tmp_path, compiler, kind):
    """Compiled ahead of time, loaded by a process of its own. Before the last step the bounds are infinite."""
    shipped = Purifier.from_pretrained("malade-mnist")
    purifier = {
        "shipped": shipped,
        "user": Purifier(torch.nn.Sequential(shipped.autoencoder), shipped.chain.replace(n_steps=2)),
    }[kind]
    x = make_images(5, 1, 28, 28)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Seeded(purifier), (x,), dynamic_shapes=({0: batch},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "purifier.pt2"))
    other = make_images(7, 1, 28, 28, seed=4)
    torch.save(other, tmp_path / "x.pt")
    torch.save(purifier(other, seed=3), tmp_path / "expected.pt")
    files = [package, str(tmp_path / "x.pt"), str(tmp_path / "expected.pt")]
    done = subprocess.run([sys.executable, "-c", LOAD, "with", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) < 1e-5
    if kind == "shipped":  # the operators come with the package's import
        done = subprocess.run(
            [sys.executable, "-c", LOAD, "without", *files], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "fastmalade" in done.stderr
