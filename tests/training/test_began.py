"""BEGAN: its equilibrium by hand, training on small pictures, resume, and its generator inside INC."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmalade import Defense, check_gradient
from fastmalade.defenses import InvertAndClassify
from fastmalade.models.began import BeganDiscriminator, BeganGenerator
from fastmalade.training import CheckpointError, loop
from fastmalade.training.began import next_balance, train_began

SMALL = {"epochs": 2, "batch_size": 8, "width": 4, "latent_dim": 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """24 pictures (24, 3, 64, 64): a bright disc of random place and colour on a dark ground."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(24, 2, 1, 1, generator=generator) * 32 + 16
    colour = torch.rand(24, 3, 1, 1, generator=generator) * 0.5 + 0.4
    grid = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    inside = ((grid - place).square().sum(1, keepdim=True) < 144).float()
    return 0.1 + inside * colour


def test_the_architecture_is_that_of_the_paper():
    with torch.device("meta"):
        generator = BeganGenerator()
    shapes = [tuple(p.shape) for p in generator.parameters() if p.ndim > 1]
    # 004 section 4.1: 128 numbers to 8 x 8 x 128, four 3x3 convolutions of 128 filters, one of 3.
    assert shapes == [(8192, 128), *[(128, 128, 3, 3)] * 4, (3, 128, 3, 3)]
    assert len([p for p in BeganGenerator(2, 2, depth=2).parameters() if p.ndim == 4]) == 9
    small = BeganGenerator(4, 2, 1)
    images = small(torch.randn(2, 4)).detach()
    assert images.shape == (2, 1, 64, 64)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert BeganDiscriminator(4, 2, 1)(images).shape == (2,)


def test_the_error_is_a_mean_over_pixels_from_minus_one_to_one():
    model = BeganDiscriminator(4, 2)
    with torch.no_grad():
        model.decoder.last.weight.zero_()
        model.decoder.last.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    # A white image is 1 everywhere: the errors of the three channels are 0.5, 1 and 2.
    assert float(model(torch.ones(1, 3, 64, 64)).detach()) == pytest.approx(3.5 / 3)


@pytest.mark.parametrize(
    ("balance", "real", "fake", "expected"),
    [(0.2, 0.8, 0.1, 0.2 + 0.05 * (0.4 - 0.1)), (0.2, 0.1, 9.0, 0.0), (0.99, 9.0, 0.0, 1.0)],
)
def test_the_balance_by_hand(balance, real, fake, expected):
    found = next_balance(*map(torch.tensor, (balance, real, fake)), gamma=0.5, rate=0.05)
    assert float(found) == pytest.approx(expected)


def test_one_step_of_the_training_by_hand(pictures):
    settings = {**SMALL, "epochs": 1, "batch_size": 24, "balance_rate": 2.0, "gamma": 1.0, "code_scale": 2.0}
    generator, report = train_began(pictures, progress=False, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, judge = BeganGenerator(4, 4), BeganDiscriminator(4, 4)
        torch.manual_seed(0)
        order = torch.randperm(24)
        fake = first(2.0 * torch.randn(24, 4))
    generated, real = judge(fake).mean(), judge(pictures[order]).mean()
    # k is 0 in the first step, so that the loss is L(x) + L(G(z)).
    assert report.final["train_loss"] == pytest.approx(float((generated + real).detach()), rel=1e-5)
    assert report.final["balance"] == pytest.approx(
        min(max(2.0 * float((real - generated).detach()), 0.0), 1.0), abs=1e-5
    )
    generated.backward()
    optimizer = torch.optim.Adam(first.parameters(), lr=settings["learning_rate"])
    optimizer.step()
    for a, b in zip(generator.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_it_learns_and_its_generator_serves_inc(pictures, tmp_path):
    settings = {**SMALL, "epochs": 12, "balance_rate": 0.05}
    start, _ = train_began(pictures, progress=False, **{**settings, "epochs": 1, "learning_rate": 1e-9})
    generator, report = train_began(pictures, validation=pictures[:8], progress=False, **settings)
    assert report.final["convergence"] < 0.7 * report.history[0]["convergence"]
    codes = 2 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))

    def away(model: BeganGenerator) -> float:
        return float((model(codes).mean(0) - pictures.mean(0)).square().mean())

    assert away(generator) < 0.5 * away(start)

    defense = InvertAndClassify(generator, n_steps=8, rate=0.1, code_scale=2.0, eta=30.0).eval()
    x = pictures[:2]
    purified = defense.purify(x, seed=3)
    assert purified.shape == x.shape
    none = InvertAndClassify(generator, n_steps=0, code_scale=2.0).purify(x, seed=3)
    assert bool(((purified - x).square().sum((1, 2, 3)) < (none - x).square().sum((1, 2, 3))).all())
    assert defense.rejects(x, seed=3).shape == (2,)
    report = check_gradient(defense, x, directions=2)
    assert report["derivative"].status == "PASS", str(report)
    defense.save_pretrained(tmp_path / "inc.safetensors")
    assert torch.equal(Defense.from_pretrained(tmp_path / "inc.safetensors").purify(x, seed=3), purified)


def test_an_interrupted_training_ends_like_one_that_was_not(pictures, tmp_path, monkeypatch):
    settings = {**SMALL, "balance_rate": 0.5}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    whole, report = train_began(pictures, progress=False, **settings)
    assert torch.equal(torch.rand(3), expected)
    path = tmp_path / "run.pt"
    one_epoch, calls = loop._one_epoch, []

    def stop_after_one(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return one_epoch(*arguments, **options)

    monkeypatch.setattr(loop, "_one_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train_began(pictures, progress=False, checkpoint=path, **settings)
    monkeypatch.undo()
    resumed, resumed_report = train_began(pictures, progress=False, checkpoint=path, **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed_report.history == report.history
    with pytest.raises(CheckpointError, match="other settings"):
        train_began(pictures, progress=False, checkpoint=path, **{**settings, "gamma": 0.7})


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda x: x, {"gamma": 0.0}, r"gamma: expected a number in \(0, 1\]"),
        (lambda x: x, {"balance_rate": -1.0}, "balance_rate: expected a positive number"),
        (lambda x: x, {"width": 0}, "width: expected a positive integer"),
        (lambda x: x[:, :, :32], {}, r"images: expected shape \(n, C, 64, 64\), got \(24, 3, 32, 64\)"),
        (lambda x: x * 2, {}, "expected image values"),
    ],
)
def test_bad_arguments(pictures, change, settings, message):
    with pytest.raises(ValueError, match=message):
        train_began(change(pictures), progress=False, **settings)
