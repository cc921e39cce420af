"""Training of the rivals' networks: it learns, resumes to the bit, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmalade.training import CheckpointError, loop
from fastmalade.training.gan import gradient_penalty, train_gan
from fastmalade.training.generative import Vae, train_denoiser, train_vae

GAN = {"epochs": 2, "batch_size": 20, "width": 2, "critic_width": 2, "latent_dim": 8}
TRAININGS = {
    "gan": (train_gan, GAN),
    "vae": (train_vae, {"epochs": 2, "batch_size": 20, "hidden": 16, "latent_dim": 3}),
    "denoiser": (train_denoiser, {"epochs": 2, "batch_size": 20, "width": 4, "depth": 2}),
}


@pytest.fixture(params=TRAININGS)
def training(request):
    return TRAININGS[request.param]


def test_an_interrupted_training_ends_like_one_that_was_not(training, digits, tmp_path, monkeypatch):
    train, settings = training
    images = digits[0][:60]
    whole, report = train(images, progress=False, **settings)
    path = tmp_path / "run.pt"
    calls = []

    def stop_after_one(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return one_epoch(*arguments, **options)

    one_epoch = loop._one_epoch
    monkeypatch.setattr(loop, "_one_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train(images, progress=False, checkpoint=path, **settings)
    monkeypatch.undo()
    resumed, resumed_report = train(images, progress=False, checkpoint=path, **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed_report.history == report.history
    assert not any(p.requires_grad for p in resumed.parameters())
    with pytest.raises(CheckpointError, match="other settings"):
        train(images, progress=False, checkpoint=path, **{**settings, "batch_size": 30})


def test_the_global_generator_is_left_alone(training, digits):
    train, settings = training
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(digits[0][:40], progress=False, **{**settings, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)


def test_losses_fall(digits):
    images = digits[0][:200]
    _, vae = train_vae(images, validation=images, progress=False, epochs=6, batch_size=20, hidden=32, latent_dim=4)
    assert vae.history[-1]["validation_bound"] < 0.8 * vae.history[0]["validation_bound"]
    _, dae = train_denoiser(
        images, validation=images, progress=False, epochs=3, batch_size=20, width=4, depth=2, learning_rate=1e-2
    )
    assert dae.history[-1]["validation_error"] < 0.8 * dae.history[0]["validation_error"]


@pytest.mark.slow
def test_generated_images_come_closer_to_digits(digits):
    images = digits[0][:200]
    settings = {**GAN, "epochs": 6, "width": 4, "critic_width": 4, "learning_rate": 2e-3, "average": 0.5}
    codes = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    short, _ = train_gan(images, progress=False, **{**settings, "epochs": 1, "learning_rate": 1e-9})
    trained, report = train_gan(images, validation=images, progress=False, **settings)
    assert report.history[-1].keys() >= {"critic_gap", "train_loss"}

    def away(generator: nn.Module) -> float:
        return float((generator(codes).mean(0) - images.mean(0)).square().mean())

    assert away(trained) < 0.5 * away(short)


def test_the_penalty_is_that_of_a_known_slope():
    class Slope(nn.Module):
        def forward(self, x):
            return 3.0 * x.flatten(1).sum(1)

    real, fake = torch.rand(4, 1, 2, 2), torch.rand(4, 1, 2, 2)
    # The gradient is 3 in each of four pixels: its norm is 6.
    assert float(gradient_penalty(Slope(), real, fake)) == pytest.approx(25.0, rel=1e-5)


def test_the_bound_is_that_of_its_definition(digits):
    torch.manual_seed(0)
    model = Vae(3, 16, (1, 28, 28)).double()
    x, noise = digits[0][:5].double(), torch.randn(5, 3, dtype=torch.float64)
    mean, log_variance = model.encoder(x)
    deviation = torch.exp(log_variance / 2)
    pixels = torch.distributions.Bernoulli(probs=model.decoder(mean + deviation * noise), validate_args=False)
    posterior = torch.distributions.Normal(mean, deviation)
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = torch.distributions.kl_divergence(posterior, prior).sum(1)
    expected = divergence - pixels.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(model.loss(x, noise), expected)


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (train_gan, {"critic_rate": 0.0}, "critic_rate: expected a positive number"),
        (train_gan, {"average": 1.0}, r"average: expected a number in \[0, 1\)"),
        (train_vae, {"hidden": 0}, "hidden: expected a positive integer"),
        (train_denoiser, {"largest_sigma": 0.0}, "largest_sigma: expected a positive number"),
    ],
)
def test_bad_settings(train, settings, message, digits):
    with pytest.raises(ValueError, match=message):
        train(digits[0][:4], progress=False, **settings)
    with pytest.raises(ValueError, match="expected image values"):
        train(digits[0][:4] * 2, progress=False)
