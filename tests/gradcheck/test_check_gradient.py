"""check_gradient passes right gradients and catches planted errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmalade import DefendedClassifier, Purifier, check_gradient, load_classifier, reference
from fastmalade.backends.cpu import calls as cpu
from fastmalade.chain import direct
from fastmalade.chain import operators as ops
from fastmalade.models import Autoencoder


@pytest.fixture
def images(digits):
    return digits[0][::300].clone()


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("mnist-c")


@pytest.fixture
def smooth():
    """A classifier without kinks, so that the limits of the checks are far away."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Tanh(), nn.Linear(20, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    return model.requires_grad_(False)


@pytest.mark.parametrize("clamp", ["none", "final", "every_step"])
def test_passes_on_a_purifier(purifier, images, backend, clamp):
    purifier.chain = purifier.chain.replace(clamp=clamp)
    purifier.backend = backend
    before = images.clone()
    report = check_gradient(purifier, images)
    assert report.passed, str(report)
    assert report["derivative"].value < 1e-6
    assert report["float32 gradient"].value < 1e-4
    assert report["spread"].value < 1.0
    assert torch.equal(images, before)
    assert purifier.backend == backend


def test_passes_on_a_defended_classifier(purifier, smooth, images):
    report = check_gradient(DefendedClassifier(purifier, smooth, n_chains=2), images)
    assert report.passed, str(report)
    assert "PASS" in str(report)


def test_passes_on_the_shipped_models(classifier, images):
    report = check_gradient(DefendedClassifier(Purifier.from_pretrained("malade-mnist"), classifier), images)
    assert report.passed, str(report)


@pytest.mark.parametrize("gradient", ["bpda", "blind"])
def test_substitutes_are_not_the_derivative(purifier, smooth, images, gradient):
    report = check_gradient(DefendedClassifier(purifier, smooth, gradient=gradient), images)
    assert report["derivative"].status == "FAIL"
    assert gradient in report["derivative"].detail
    assert not report.passed


def test_majority_votes_have_no_derivative(purifier, smooth, images):
    report = check_gradient(DefendedClassifier(purifier, smooth, n_chains=3, vote="majority"), images)
    assert report["derivative"].status == "FAIL"


def test_a_detached_step_is_caught(purifier, images):
    """A chain that cuts the gradient before its last step, as a careless defence does."""

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.autoencoder = purifier.autoencoder

        def forward(self, x):
            first = x + 0.3 * (self.autoencoder(x) - x)
            second = first.detach() * 0.5 + first * 0.5
            return second + 0.3 * (self.autoencoder(second) - second)

    report = check_gradient(Detached(), images)
    assert report["derivative"].status == "FAIL"
    assert report["float32 gradient"].status == "PASS"


def test_straight_through_is_caught(images):
    report = check_gradient(lambda x: (x > 0.5).to(x.dtype) + x - x.detach(), images)
    assert report["derivative"].status == "FAIL"


def test_a_dropped_factor_in_one_layer_is_caught(purifier, images, monkeypatch):
    exact = reference.autoencoder_vjp

    def planted(cotangent, activations, weights, **options):
        # Forget the derivative of the tanh of the last layer.
        output = activations[-1]
        return exact(cotangent / (1.0 - output * output), activations, weights, **options)

    monkeypatch.setattr(reference, "autoencoder_vjp", planted)
    report = check_gradient(purifier, images)
    assert report["derivative"].status == "FAIL"


def test_a_stale_noise_key_in_the_backward_is_caught(purifier, images, monkeypatch):
    exact = ops.noise_of_step

    def stale(x, noise, *rest):
        return exact(x, noise._replace(seed=noise.seed + 1), *rest)

    monkeypatch.setattr(ops, "noise_of_step", stale)
    report = check_gradient(purifier, images)
    assert report["derivative"].status == "FAIL"


@pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason()))
@pytest.mark.parametrize("mistake", ["factor", "noise", "factor of kept activations"])
def test_a_mistake_of_the_kernel_alone_is_caught(purifier, images, monkeypatch, mistake):
    exact = cpu.chain_gradient

    def planted(cotangent, x, weights, steps, noise, **options):
        if mistake == "factor":
            return exact(1.001 * cotangent, x, weights, steps, noise, **options)
        return exact(cotangent, x, weights, steps, noise._replace(seed=noise.seed + 1), **options)

    monkeypatch.setattr(cpu, "chain_gradient", planted)
    kept = cpu.RecordedChain.gradient
    monkeypatch.setattr(cpu.RecordedChain, "gradient", lambda self, g: 1.001 * kept(self, g))
    if "kept" not in mistake:
        monkeypatch.setattr(direct, "KEPT_BYTES", 0)
    report = check_gradient(purifier, images)
    assert report["derivative"].status == "PASS"  # computed in float64, where no kernel takes part
    assert report["float32 gradient"].status == "FAIL"


def test_a_budget_that_changes_the_gradient_is_caught(purifier, images, backend, monkeypatch):
    owner, name = (cpu, "chain_gradient") if backend == "cpu" else (ops.ChainGradient, "evaluate")
    exact = getattr(owner, name)

    def planted(*arguments, **options):
        found = exact(*arguments, **options)
        if options.get("max_bytes", arguments[-1]) is None:
            return found
        return found * (1 + 1e-6) if backend == "cpu" else (found[0] * (1 + 1e-6), *found[1:])

    monkeypatch.setattr(owner, name, planted)
    purifier.backend = backend
    report = check_gradient(purifier, images)
    assert report["budgets"].status == "FAIL"
    assert report["derivative"].status == "PASS"


def test_budgets_are_reported(purifier, smooth, images):
    report = check_gradient(purifier, images)
    assert report["budgets"].status == "PASS"
    assert "forward steps" in report["budgets"].detail
    assert purifier.max_bytes is None
    assert check_gradient(DefendedClassifier(purifier, smooth), images)["budgets"].status == "PASS"
    with pytest.raises(KeyError):
        check_gradient(lambda x: x.square(), images)["budgets"]


def test_masked_gradients_are_caught(images):
    report = check_gradient(lambda x: 1000.0 * torch.relu(x - 0.9), images)
    assert report["zero"].status == "FAIL"
    assert report["zero"].value > 0.5

    def broken(x):
        return torch.sqrt(x - x.detach()) + x.sum((1, 2, 3), keepdim=True)

    report = check_gradient(broken, images)
    assert report["finite"].status == "FAIL"


def test_images_without_any_gradient_are_named(images):
    report = check_gradient(
        lambda x: x * torch.tensor([0.0, 1, 1, 1], dtype=x.dtype)[: len(x), None, None, None], images
    )
    assert report["zero"].status == "FAIL"
    assert "1 of 4" in report["zero"].detail


def test_rows_that_depend_on_each_other_are_caught(images):
    class Mixed(nn.Module):
        """Same value as tanh, row by row, but a gradient that sees the other rows."""

        def forward(self, x):
            other = x.mean(0, keepdim=True)
            return torch.tanh(x) + 0.5 * (other - other.detach())

    report = check_gradient(Mixed(), images)
    assert report["rows"].status == "FAIL"


def test_noise_of_a_callable(images):
    def from_the_global_generator(x):
        return torch.tanh(x + 0.1 * torch.randn_like(x))

    before = torch.random.get_rng_state()
    report = check_gradient(from_the_global_generator, images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert report.passed, str(report)
    assert "reseed" in report["noise"].detail

    generator = torch.Generator()

    def own(x):
        return torch.tanh(x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    assert check_gradient(own, images)["repeatable"].status == "FAIL"
    report = check_gradient(own, images, reseed=lambda: generator.manual_seed(5))
    assert report["repeatable"].status == "PASS"
    assert report["derivative"].status == "PASS"


def test_stale_noise_of_a_purifier_is_caught(purifier, images, monkeypatch):
    monkeypatch.setattr(ops, "fresh_seed", lambda: 7)
    assert check_gradient(purifier, images)["noise"].status == "FAIL"


def test_fixed_seed_and_no_noise_are_no_faults(purifier, smooth, images):
    fixed = DefendedClassifier(purifier, smooth, seed=3)
    assert check_gradient(fixed, images)["noise"].status == "INFO"
    purifier.chain = purifier.chain.replace(noise_scale=0.0)
    report = check_gradient(purifier, images)
    assert report.passed
    assert report["noise"].detail == "deterministic"


def test_modules_keep_mode_dtype_and_parameters(purifier, smooth, images):
    model = DefendedClassifier(purifier, nn.Sequential(nn.Dropout(0.5), smooth)).train()
    report = check_gradient(model, images[:1])
    assert report.passed, str(report)
    assert model.classifier[0].training
    assert next(model.parameters()).dtype == torch.float32


def test_float64_and_coarse_float32(make_autoencoder, images):
    autoencoder: Autoencoder = make_autoencoder(dtype=torch.float64)
    report = check_gradient(autoencoder, images.double())
    assert report.passed
    with pytest.raises(KeyError, match="float32 gradient"):
        report["float32 gradient"]
    weight = torch.ones(1, 1, 3, 3)

    def only_float32(x):
        return torch.tanh(nn.functional.conv2d(x, weight, padding=1))

    with pytest.raises(ValueError, match=r"float64.*dtype=torch\.float32"):
        check_gradient(only_float32, images)
    assert check_gradient(only_float32, images, dtype=torch.float32).passed


def test_wrong_arguments(purifier, images):
    with pytest.raises(TypeError, match="model"):
        check_gradient(3, images)
    with pytest.raises(TypeError, match="float32 or float64"):
        check_gradient(purifier, images.half())
    with pytest.raises(ValueError, match="at least one image"):
        check_gradient(purifier, images[:0])
    with pytest.raises(ValueError, match="directions"):
        check_gradient(purifier, images, directions=0)
    with pytest.raises(ValueError, match="dtype"):
        check_gradient(purifier, images, dtype=torch.float16)
    with pytest.raises(ValueError, match="detached"):
        check_gradient(lambda x: x.detach() * 2, images)
    with pytest.raises(ValueError, match=r"shape \(4, \.\.\.\)"):
        check_gradient(lambda x: x.sum(), images)
