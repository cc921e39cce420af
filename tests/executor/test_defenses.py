"""Every defence as a graph, and ``fastmalade bench defenses`` on a GPU, on the stand-in for the capture layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmalade import Autoencoder, DefendedClassifier, Defense
from fastmalade.bench.defense_forms import Place, place
from fastmalade.bench.defenses import DefenseSettings, run
from fastmalade.defenses import Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.executor import GraphExecutor
from fastmalade.executor.fingerprint import fingerprint
from fastmalade.models.gan import GanGenerator
from fastmalade.models.prior import PriorNetwork


def apudae(variant: str) -> Apudae:
    return Apudae(Autoencoder(1, (2, 3)), variant=variant, n_steps=2, error_mean=1.0, error_std=2.0)


def autoencode() -> Defense:
    generator = GanGenerator(width=2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, generator.latent_dim), nn.Unflatten(0, (1, -1)))
    return AutoencodeAndClassify(encoder, generator)


DEFENSES = {
    "magnet": lambda: MagNet(Autoencoder(1, (2, 3)), value_range=(-1.0, 1.0)),
    "defense-gan": lambda: DefenseGan(GanGenerator(width=2), n_steps=2, n_restarts=3),
    "inc": lambda: InvertAndClassify(GanGenerator(width=2), n_steps=2),
    "dip-inc": lambda: DeepPrior(PriorNetwork(widths=(4,)), n_steps=2),
    "autoencode": autoencode,
    **{f"apudae {variant}": (lambda variant=variant: apudae(variant)) for variant in ("direct", *"ABCDEFG")},
}


@pytest.mark.parametrize("name", DEFENSES)
def test_a_graph_of_a_defence_is_the_defence(capture, name: str) -> None:
    torch.manual_seed(0)
    defense = DEFENSES[name]().requires_grad_(False).eval()
    executor = GraphExecutor.of_defense(defense, buckets=(4,), capture=capture)
    side = 8 if name == "dip-inc" else 28  # the others have sizes of their own, or are quick
    x = torch.rand(3, 1, side, side)
    # Adam's first step is the sign of a gradient: where that is near zero, rounding decides.
    atol = 2e-2 if name == "dip-inc" else 1e-5
    for seed, ids in ((5, None), (2**64 - 1, [4, 9, 2**63])):
        result = executor(x, seed=seed, sample_ids=ids)
        torch.testing.assert_close(result, defense(x, seed=seed, sample_ids=ids), rtol=0, atol=atol)
        assert not result.requires_grad
    assert capture.calls.count("capture") == 1
    # A replay draws its own noise.
    if defense.is_random:
        assert (executor(x, seed=1) - executor(x, seed=2)).abs().max() > 2 * atol
    assert executor(x[:0], seed=1).shape == (0, 1, side, side)
    with pytest.raises(ValueError, match="x: expected shape"):
        executor(torch.rand(1, 2, side, side), seed=1)


def test_a_rival_and_its_classifier_in_one_graph(capture) -> None:
    torch.manual_seed(0)
    defense = DEFENSES["defense-gan"]().requires_grad_(False).eval()
    defended = DefendedClassifier(defense, nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), n_chains=2)
    executor = GraphExecutor.of_classifier(defended, buckets=(4,), capture=capture)
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(executor(x, seed=4), defended(x, seed=4), rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match=r"expected a fastmalade.Defense, got Identity"):
        GraphExecutor.of_defense(nn.Identity(), capture=capture)


def test_settings_of_a_defence_are_part_of_its_graph() -> None:
    defense = DEFENSES["inc"]()
    seen = [fingerprint(defense)]
    for name, value in (("n_steps", 3), ("optimizer", type(defense.optimizer)(0.5)), ("value_range", (-1.0, 1.0))):
        setattr(defense, name, value)
        seen.append(fingerprint(defense))
    assert len(set(seen)) == 4


class Gpu:
    """A place on the CPU that counts how often it was waited for."""

    def __init__(self, capture) -> None:
        self.waits = 0
        self.place = Place(torch.device("cpu"), self.wait, capture)

    def wait(self) -> None:
        self.waits += 1


@pytest.fixture
def gpu(quick_measurements, capture, monkeypatch) -> Gpu:
    found = Gpu(capture)
    monkeypatch.setattr("fastmalade.bench.defenses.place", lambda device: found.place)
    monkeypatch.setattr("fastmalade.bench.defenses.GAN_STEPS", 2)
    return found


QUICK = {"batches": (2,), "steps": (2,), "restarts": (2,), "seconds": 0.0, "compiled": False, "device": "cuda"}


def test_the_bench_tries_graphs_and_waits_for_every_call(gpu, capture, monkeypatch) -> None:
    names = ("malade cuda", "magnet", "apudae table 8")
    used = []
    real = torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(Apudae, "_check", lambda self, x: used.append(torch.backends.cudnn.allow_tf32))
    result = run(DefenseSettings(**QUICK, contenders=names))
    cells = {cell["contender"]: cell for cell in result["cells"]}
    # There is no GPU behind this place, so its own backend fails, is named, and the others are timed.
    assert list(cells) == list(names[1:])
    (failure,) = result["failures"]
    assert failure["contender"] == "malade cuda"
    assert "cuda" in failure["error"]
    forms = ("eager", "channels last", "eager, graph", "channels last, graph")
    assert cells["apudae table 8"]["form"] in forms
    assert cells["magnet"]["form"] in ("", "graph")
    assert gpu.waits >= sum(cell["us_per_image"]["repetitions"] for cell in result["cells"])
    # A form with two steps, and the whole one where a graph was the fastest.
    assert capture.calls.count("capture") >= 3
    assert used
    assert not any(used)
    assert torch.backends.cudnn.allow_tf32 == real
    assert all(cell["refused"] == {} for cell in cells.values())


def test_a_defence_that_no_graph_holds_is_timed_without_and_says_why(gpu, capture) -> None:
    capture.fails = RuntimeError("operation not permitted")
    (cell,) = run(DefenseSettings(**QUICK, contenders=("inc",)))["cells"]
    assert cell["form"] == "eager"
    assert list(cell["refused"]) == ["eager, graph"]
    assert "operation not permitted" in cell["refused"]["eager, graph"]


def test_a_run_that_is_out_of_time_keeps_what_it_has(gpu, monkeypatch) -> None:
    now = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr("fastmalade.bench.defenses.time.monotonic", lambda: next(now))
    settings = DefenseSettings(**{**QUICK, "batches": (1, 2, 3)}, contenders=("magnet",), limit=2.0)
    result = run(settings)
    assert [cell["batch"] for cell in result["cells"]] == [1]
    assert not result["complete"]
    assert result["warnings"][-1] == "out of time: 2 of 3 cells were not begun"


def test_places() -> None:
    assert place("cpu") == Place(torch.device("cpu"))
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got 'tpu'"):
        place("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="it sees no CUDA device"):
            place("cuda")
