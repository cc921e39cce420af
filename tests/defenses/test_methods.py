"""Each defence against a form that shares no code with it, or a property that must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastmalade import Autoencoder, Purifier, load_classifier
from fastmalade.defenses import Apudae, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.models.gan import GanGenerator
from fastmalade.models.prior import PriorNetwork
from fastmalade.models.vae import VaeDecoder
from fastmalade.noise import standard_normal


def test_defense_gan_is_momentum_descent_with_the_best_restart(images):
    torch.manual_seed(0)
    generator = GanGenerator(8, 2).requires_grad_(False).double()
    x = images.double()
    defense = DefenseGan(generator, n_steps=6, n_restarts=3).double()
    result = defense(x, seed=5, sample_ids=[4, 5, 6, 7, 8])
    for index in range(len(x)):
        outcomes = []
        for restart in range(3):
            start = standard_normal(5, [4 + index], restart, (8,), backend="torch")[0].double()
            z = (start / math.sqrt(8)).requires_grad_(True)
            optimizer = torch.optim.SGD([z], lr=10.0, momentum=0.7)
            for step in range(6):
                # The rate falls to a tenth for the last fifth of the steps.
                optimizer.param_groups[0]["lr"] = 10.0 if step < 5 else 1.0
                optimizer.zero_grad()
                (generator(z[None]) - x[index]).square().mean().backward()
                optimizer.step()
            with torch.no_grad():
                image = generator(z[None])[0]
            outcomes.append((float((image - x[index]).square().sum()), image))
        best = min(outcomes, key=lambda pair: pair[0])[1]
        # Starts are float32 in one of the two.
        torch.testing.assert_close(result[index], best, rtol=0, atol=1e-5)


def test_inc_is_adam_on_the_code(images):
    torch.manual_seed(0)
    decoder = VaeDecoder(4, 12).requires_grad_(False).double()
    x = images.double()
    result = InvertAndClassify(decoder, n_steps=8).double()(x, seed=5)
    z = standard_normal(5, range(5), 0, (4,), backend="torch").double().requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(8):
        optimizer.zero_grad()
        (decoder(z) - x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(result, decoder(z).detach(), rtol=0, atol=1e-5)


def test_search_on_a_linear_generator_is_the_projection(linear_generator, rng):
    x = torch.from_numpy(rng.random((6, 1, 4, 4)))
    weight = linear_generator.weight
    projection = (x.flatten(1) @ weight @ weight.T).reshape(x.shape)
    gan = DefenseGan(linear_generator, n_steps=400, n_restarts=2, rate=2.0)
    torch.testing.assert_close(gan(x, seed=1), projection, rtol=0, atol=1e-6)
    inc = InvertAndClassify(linear_generator, n_steps=2000, rate=0.02, eta=1.0)
    torch.testing.assert_close(inc(x, seed=1), projection, rtol=0, atol=1e-4)
    # The derivative of a projection is the projection.
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((gan(leaf, seed=1) * x).sum(), leaf)
    torch.testing.assert_close(gradient, projection, rtol=0, atol=1e-6)
    distance = (projection - x).flatten(1).norm(dim=1)
    assert torch.equal(inc.rejects(x, seed=1), distance >= 1.0)
    inc.eta = None
    with pytest.raises(ValueError, match="eta: expected a distance"):
        inc.rejects(x)


def test_more_restarts_never_fit_worse(images):
    torch.manual_seed(0)
    generator = GanGenerator(8, 2).requires_grad_(False)
    errors = []
    for restarts in (1, 2, 5):
        result = DefenseGan(generator, n_steps=4, n_restarts=restarts)(images, seed=0)
        errors.append((result - images).square().flatten(1).sum(1))
    assert bool((errors[1] <= errors[0] + 1e-4).all())
    assert bool((errors[2] <= errors[1] + 1e-4).all())
    assert bool((errors[2] < errors[0] - 1e-3).any())


def test_magnet_reforms_by_one_pass(images):
    autoencoder = Purifier.from_pretrained("mala-mnist").autoencoder
    torch.testing.assert_close(MagNet(autoencoder)(images), autoencoder(images).clamp(0, 1), rtol=0, atol=1e-5)


def test_magnet_detectors_by_definition(digits):
    images = digits[0][:40]
    autoencoder, classifier = Purifier.from_pretrained("mala-mnist").autoencoder, load_classifier("mnist-c")
    scores = MagNet(autoencoder).scores(images, classifier)
    difference = (autoencoder(images) - images).double().numpy().reshape(40, -1)
    np.testing.assert_allclose(scores["error-1"], np.abs(difference).mean(1), rtol=1e-4)
    np.testing.assert_allclose(scores["error-2"], np.square(difference).mean(1), rtol=1e-4)
    reformed = autoencoder(images).clamp(0, 1)
    for temperature in (10, 40):
        p, q = ((classifier(x).double() / temperature).softmax(1).numpy() for x in (images, reformed))
        middle = (p + q) / 2
        expected = 0.5 * (p * np.log(p / middle)).sum(1) + 0.5 * (q * np.log(q / middle)).sum(1)
        np.testing.assert_allclose(scores[f"divergence-{temperature}"], expected, rtol=1e-2, atol=1e-7)


@pytest.mark.slow
def test_magnet_thresholds_keep_their_rate_and_catch_noise(digits):
    images, classifier = digits[0], load_classifier("mnist-c")
    defense = MagNet(Purifier.from_pretrained("mala-mnist").autoencoder)
    with pytest.raises(ValueError, match="expected one for each of"):
        defense.rejects(images[:3])
    defense.calibrate(images[:500], classifier, false_positive_rate=0.01)
    for name, scores in defense.scores(images[:500], classifier).items():
        assert int((scores > defense.thresholds[name]).sum()) == 5
    assert int(defense.rejects(images[:500], classifier).sum()) <= 20
    noise = torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert bool(defense.rejects(noise, classifier).all())
    with pytest.raises(ValueError, match="images: expected at least 1000"):
        defense.calibrate(images[:500], false_positive_rate=0.001)
    with pytest.raises(ValueError, match="thresholds: expected finite numbers"):
        MagNet(defense.autoencoder, thresholds={"error-3": 1.0})


class _Shrink(nn.Module):
    """r(x) = c x: the error is (1 - c)^2 |x|^2, its gradient 2 (1 - c)^2 x."""

    in_channels = 1

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64), requires_grad=False)

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("variant", ["A", "B", "C", "D", "E"])
def test_apudae_variants_on_a_linear_autoencoder(variant, images):
    x = images.double()
    mean, std, alpha, beta = 2.0, 1.5, 0.05, 0.8
    settings = {"step_size": alpha, "momentum": beta, "error_mean": mean, "error_std": std}
    result = Apudae(_Shrink(0.8), variant=variant, n_steps=6, **settings)(x)
    state, direction = x.numpy().copy(), 0.0
    for _ in range(6):
        error = 0.04 * np.square(state).sum((1, 2, 3), keepdims=True)
        gradient = 2 * 0.04 * state
        if variant == "D":
            gradient = gradient * np.sign(error - mean) / std
        if variant == "E":
            gradient = gradient * (error > mean) / std
        rate = alpha * (1 - np.exp(-(((error - mean) / std) ** 2))) if variant == "C" else alpha
        direction = gradient if variant == "A" else beta * direction + (1 - beta) * gradient
        state = state - rate * direction
    np.testing.assert_allclose(result.numpy(), state.clip(0, 1), rtol=1e-9)


def test_apudae_noise_and_transform(images):
    x = images.double()
    # With r(x) = x the error is that of the noise alone: |gamma z|^2, which does not depend on x.
    still = Apudae(_Shrink(1.0), variant="F", noise_scale=0.3, error_mean=0.0, error_std=1.0)
    torch.testing.assert_close(still(x, seed=1), x)
    moved = Apudae(_Shrink(0.8), variant="F", noise_scale=0.3, error_mean=0.0, error_std=1.0, step_size=0.1)
    assert not torch.equal(moved(x, seed=1), moved(x, seed=2))
    upright = Apudae(_Shrink(1.0), variant="G", max_angle=0.0, max_resize=0.0, error_mean=0.0, error_std=1.0)
    torch.testing.assert_close(upright(x, seed=1), x, rtol=0, atol=1e-9)
    turned = Apudae(_Shrink(1.0), variant="G", max_angle=30.0, max_resize=0.0, error_mean=0.0, error_std=1.0)
    side = torch.linspace(-27 / 28, 27 / 28, 28, dtype=torch.float64)
    cone = (1 - torch.hypot(side[None], side[:, None])).clamp(0, 1).expand(5, 1, -1, -1)
    # A rotation leaves what is round as it is, up to interpolation, and moves a digit.
    assert float((turned(cone, seed=1) - cone).abs().max()) < 0.06
    assert float((turned(x, seed=1) - x).abs().max()) > 0.3


class _Hidden(torch.nn.Module):
    """The same r(x), not recognised as a Table 8 autoencoder: its gradients come from autograd."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("variant", ["A", "B", "C", "D", "E", "F", "G"])
def test_apudae_by_the_kernels_products(variant, digits):
    x, model = digits[0][::250], Purifier.from_pretrained("mala-mnist").autoencoder
    settings = {"variant": variant, "n_steps": 8, "step_size": 0.02, "error_mean": 3.0, "error_std": 2.0}
    with torch.no_grad():
        found = Apudae(model, **settings)(x, seed=3)
        expected = Apudae(_Hidden(model), **settings)(x, seed=3)
    assert float((expected - x).abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_apudae_statistics(digits):
    defense = Apudae(Purifier.from_pretrained("mala-mnist").autoencoder, variant="E")
    with pytest.raises(ValueError, match="variant E: expected error_mean and error_std"):
        defense(digits[0][:2])
    mean, std = defense.calibrate(digits[0][:200])
    errors = (digits[0][:200] - defense.autoencoder(digits[0][:200])).square().flatten(1).sum(1).numpy()
    assert mean == pytest.approx(errors.mean(), rel=1e-5)
    assert std == pytest.approx(errors.std(ddof=1), rel=1e-5)
    # Variant E leaves alone what is better than the mean.
    kept = defense(digits[0][:200])[torch.from_numpy(errors < mean)]
    assert torch.equal(kept, digits[0][:200][torch.from_numpy(errors < mean)])


def test_apudae_lowers_the_error_of_noisy_digits(digits):
    clean = digits[0][:20]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean + 0.2 * noise).clamp(0, 1)
    defense = Apudae(Purifier.from_pretrained("mala-mnist").autoencoder, n_steps=30, step_size=0.05)
    purified = defense(noisy)
    assert bool((defense.errors(purified) < defense.errors(noisy)).all())
    assert float((purified - clean).square().mean()) < 0.7 * float((noisy - clean).square().mean())


def test_deep_prior_fits_and_stops(images):
    network = PriorNetwork(1, 4, (8, 8), 2)
    fitted = DeepPrior(network, n_steps=60, stop_error=0.0)(images, seed=1)
    early = DeepPrior(network, n_steps=5, stop_error=0.0)(images, seed=1)
    assert float((fitted - images).square().mean()) < 0.5 * float((early - images).square().mean())
    stopped = DeepPrior(network, n_steps=60, stop_error=0.02)(images, seed=1)
    error = (stopped - images).square().flatten(1).mean(1)
    assert bool((error < 0.02).all())
    assert bool((error > (fitted - images).square().flatten(1).mean(1)).all())


def test_deep_prior_is_adam_on_the_weights_of_each_image(images):
    network = PriorNetwork(1, 3, (4,), 2)
    defense = DeepPrior(network, n_steps=4, stop_error=0.0)
    result = defense(images.double(), seed=1)
    code = standard_normal(1, range(5), 1, (3, 28, 28), backend="torch").double()
    normals = standard_normal(1, range(5), 0, (network.parameter_count,), backend="torch").double()
    for index in range(5):
        weights = network.initial(normals[index : index + 1]).requires_grad_(True)
        optimizer = torch.optim.Adam([weights], lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            (network(weights, code[index : index + 1]) - images[index].double()).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            expected = network(weights, code[index : index + 1])[0]
        torch.testing.assert_close(result[index], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 9, 13), (3, 30, 17)])
def test_deep_prior_takes_any_size(shape):
    defense = DeepPrior(PriorNetwork(shape[0], 3, (4, 4), 2), n_steps=2)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    assert defense.purify(x, seed=0).shape == x.shape
    assert defense.cost(1, shape).forward_evaluations == 3


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DefenseGan(nn.Identity()), TypeError, "generator: expected a module with latent_dim, got Identity"),
        (lambda: DefenseGan(GanGenerator(8, 2), n_restarts=0), ValueError, "n_restarts: expected at least 1, got 0"),
        (lambda: DefenseGan(GanGenerator(8, 2), n_steps=1.5), TypeError, "n_steps: expected an int, got float"),
        (lambda: DefenseGan(GanGenerator(8, 2), rate=-1.0), ValueError, "rate: expected a positive number"),
        (lambda: InvertAndClassify(VaeDecoder(4, 12), eta=0.0), ValueError, "eta: expected a positive number"),
        (lambda: InvertAndClassify(VaeDecoder(4, 12), gradient="none"), ValueError, "gradient: expected one of"),
        (lambda: Apudae(Autoencoder(), variant="H"), ValueError, "variant: expected one of direct, A"),
        (lambda: Apudae(Autoencoder(), momentum=1.0), ValueError, "momentum: expected a number >= 0 and below 1.0"),
        (lambda: Apudae(Autoencoder(), error_mean=1.0), ValueError, "error_mean, error_std: expected both"),
        (lambda: DeepPrior(nn.Identity()), TypeError, "network: expected a PriorNetwork, got Identity"),
        (lambda: PriorNetwork(widths=()), ValueError, "widths: expected at least one scale"),
        (lambda: GanGenerator(0), ValueError, "latent_dim: expected a positive integer, got 0"),
        (lambda: MagNet(Autoencoder(), value_range=(1, 0)), ValueError, "value_range: expected finite"),
    ],
)
def test_bad_settings(build, error, message):
    with pytest.raises(error, match=message):
        build()
