"""Certificates against a classifier whose smoothed form is known, scipy's own interval, and the digits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from torch import nn

import fastmalade
from fastmalade import DefendedClassifier, Purifier, certify, reference
from fastmalade.evaluation import CertificateStateError
from fastmalade.evaluation.certificate import smallest_n
from fastmalade.evaluation.certificate_plot import draw_curve
from fastmalade.seeds import derive_seed

SHAPE = (1, 4, 4)


class HalfSpace(nn.Module):
    """Class 1 where w x + b > 0: smoothed, its boundary is the same, and its probability a normal's."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.linspace(-1, 1, 16, dtype=torch.float64)
        self.shown: list[torch.Tensor] = []

    def margin(self, x):
        return x.flatten(1).double() @ self.w + 0.5

    def forward(self, x):
        self.shown.append(x.clone())
        margin = self.margin(x)
        return torch.stack([-margin, margin, torch.full_like(margin, -100.0)], 1)


@pytest.fixture
def half_space():
    return HalfSpace()


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.random((6, *SHAPE)))


@pytest.fixture
def digit_model(digits):
    return DefendedClassifier(Purifier.from_pretrained("mala-mnist"), fastmalade.load_classifier("mnist-c"))


def test_radius_of_a_half_space(half_space, images):
    sigma, n = 0.4, 20_000
    certificate = certify(half_space, images, sigma=sigma, n=n, alpha=1e-6, seed=3, batch_size=5000, progress=False)
    distance = half_space.margin(images) / half_space.w.norm()
    assert torch.equal(certificate.prediction, (distance > 0).long())
    # Never further than the boundary, and as far as so many draws can see it.
    assert bool((certificate.radius < distance.abs()).all())
    spread = sigma * 6 / math.sqrt(n) / norm.pdf(distance.abs() / sigma)
    assert bool((certificate.radius > distance.abs() - torch.from_numpy(np.asarray(spread))).all())


def test_bound_and_radius_are_those_of_scipy(half_space, images):
    certificate = certify(half_space, images, sigma=0.5, n=200, alpha=0.01, seed=0, progress=False)
    for count, bound, radius in zip(
        certificate.counts.tolist(), certificate.lower_bound.tolist(), certificate.radius.tolist(), strict=True
    ):
        exact = binomtest(count, 200, alternative="greater").proportion_ci(0.99, method="exact").low
        assert bound == pytest.approx(exact, abs=1e-12)
        assert radius == pytest.approx(0.5 * norm.ppf(exact) if exact > 0.5 else 0.0, abs=1e-9)


def test_it_abstains_where_two_classes_are_as_likely(images):
    def coin(x):
        heads = (x.flatten(1)[:, 0] * 1e6).floor().long() % 2
        return nn.functional.one_hot(heads, 2).double()

    certificate = certify(coin, images, images[:, 0, 0, 0].long(), sigma=0.5, n=500, seed=0, progress=False)
    assert certificate.prediction.tolist() == [-1] * 6
    assert certificate.radius.tolist() == [0.0] * 6
    assert certificate.accuracy_at(0.0) == 0.0


def test_batches_and_shards_change_nothing(half_space, images):
    whole = certify(half_space, images, sigma=0.3, n=300, seed=2**64 - 1, progress=False)
    other = certify(half_space, images, sigma=0.3, n=300, seed=2**64 - 1, batch_size=7, progress=False)
    assert torch.equal(whole.counts, other.counts)
    last = certify(half_space, images[4:], sigma=0.3, n=300, seed=2**64 - 1, sample_ids=[4, 5], progress=False)
    assert torch.equal(whole.counts[4:], last.counts)
    assert torch.equal(whole.radius[4:], last.radius)
    far, again, other = (
        certify(half_space, images[:1], sigma=0.3, n=3000, seed=1, sample_ids=[name], progress=False)
        for name in (2**64 - 1, 2**64 - 1, 2**63 - 1)
    )
    assert torch.equal(far.counts, again.counts)
    assert not torch.equal(far.counts, other.counts)


def test_noise_is_that_of_the_contract_and_a_larger_n_goes_on_with_it(half_space, images):
    def shown(n):
        half_space.shown.clear()
        certify(half_space, images[:1], sigma=0.3, n=n, n_selection=5, seed=9, sample_ids=[7], progress=False)
        return torch.cat(half_space.shown)

    few, many = shown(20), shown(40)
    assert (len(few), len(many)) == (25, 45)
    assert torch.equal(few, many[:25])
    for purpose, part in ((0, many[:5]), (1, many[5:])):
        noise = reference.standard_normal(
            derive_seed(9, 7, purpose), torch.arange(len(part)), 0, SHAPE, dtype=torch.float64, device="cpu"
        )
        torch.testing.assert_close(part, images[:1] + 0.3 * noise, rtol=0, atol=1e-12)


def test_of_a_purifier_the_autoencoder_denoises_in_one_step(digits, digit_model):
    images, labels = digits[0][:4], digits[1][:4]
    certificate = certify(digit_model, images, labels, sigma=0.3, n=40, n_selection=8, seed=1, progress=False)
    autoencoder, classifier = digit_model.purifier.autoencoder.double(), digit_model.classifier.double()
    for index in range(4):
        votes = []
        for purpose, n in ((0, 8), (1, 40)):
            noise = reference.standard_normal(
                derive_seed(1, index, purpose), torch.arange(n), 0, (1, 28, 28), dtype=torch.float64, device="cpu"
            )
            with torch.no_grad():
                logits = classifier(autoencoder(images[index].double() + 0.3 * noise))
            votes.append(torch.bincount(logits.argmax(1), minlength=10))
        assert int(certificate.counts[index]) == int(votes[1][votes[0].argmax()])


def test_a_range_of_its_own(digits, digit_model):
    images, labels = digits[0][:3], digits[1][:3]
    unit = certify(digit_model, images, labels, sigma=0.3, n=40, seed=1, progress=False)
    purifier = digit_model.purifier
    wide = Purifier(purifier.autoencoder, purifier.chain, value_range=(-1.0, 1.0))
    model = DefendedClassifier(wide, lambda x: digit_model.classifier((x + 1) / 2))
    mapped = certify(model, 2 * images - 1, labels, sigma=0.6, n=40, seed=1, progress=False)
    assert torch.equal(mapped.counts, unit.counts)
    torch.testing.assert_close(mapped.radius, 2 * unit.radius)


def test_digits_are_certified_and_attacks_inside_the_radius_change_nothing(digits, digit_model):
    images, labels = digits[0][:10], digits[1][:10]
    certificate = certify(digit_model, images, labels, sigma=0.3, n=400, seed=0, progress=False)
    assert certificate.accuracy_at(0.0) >= certificate.accuracy_at(0.25) >= 0.8
    assert certificate.accuracy_at(3.0) == 0.0
    assert torch.equal(certificate.right_at(0.25), (certificate.prediction == labels) & (certificate.radius >= 0.25))
    torch.testing.assert_close(certificate.linf_radius(784), certificate.radius / 28)
    # Towards the mean digit of another class, as far as the certificate reaches.
    towards = digits[0].mean(0) - images
    moved = images + 0.99 * certificate.radius.float()[:, None, None, None] * nn.functional.normalize(
        towards.flatten(1), dim=1
    ).view_as(images)
    again = certify(digit_model, moved.clamp(0, 1), labels, sigma=0.3, n=400, seed=5, progress=False)
    held = (certificate.radius > 0) & (again.prediction >= 0)
    assert torch.equal(again.prediction[held], certificate.prediction[held])


def test_an_interrupted_run_goes_on(half_space, images, tmp_path):
    arguments = {"sigma": 0.3, "n": 100, "seed": 4, "progress": False}
    whole = certify(half_space, images, **arguments)
    file = tmp_path / "deep" / "counts.json"
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(half_space, images, checkpoint=file, **arguments | {"progress": stop})
    assert seen == [(1, 6), (2, 6)]
    half_space.shown.clear()
    resumed = certify(half_space, images, checkpoint=file, batch_size=9, **arguments)
    assert torch.equal(resumed.counts, whole.counts)
    assert sum(map(len, half_space.shown)) == 4 * 200  # of four images; the first two were read back
    with pytest.raises(CertificateStateError, match="another run"):
        certify(half_space, images, checkpoint=file, **arguments | {"sigma": 0.31})
    with pytest.raises(CertificateStateError, match="another run"):
        certify(half_space, images.flip(0), checkpoint=file, **arguments)
    file.write_text("[]")
    with pytest.raises(CertificateStateError, match="expected a checkpoint of certificates"):
        certify(half_space, images, checkpoint=file, **arguments)


def test_modes_are_as_before_and_images_untouched(half_space, images):
    model = nn.Sequential(nn.Dropout(0.9), half_space).train()
    before = images.clone()
    a, b = (certify(model, images, sigma=0.2, n=50, seed=0, progress=False) for _ in range(2))
    assert torch.equal(a.counts, b.counts)
    assert model.training
    assert torch.equal(images, before)
    fresh = {certify(half_space, images, sigma=0.2, n=50, progress=False).seed for _ in range(3)}
    assert len(fresh) == 3


def test_json_and_curve(half_space, images, tmp_path):
    labels = (half_space.margin(images) > 0).long()
    certificate = certify(half_space, images, labels, sigma=0.3, n=100, seed=0, progress=False)
    values = json.loads(json.dumps(certificate.to_json()))
    assert values["radius"] == certificate.radius.tolist()
    assert values["labels"] == labels.tolist()
    draw_curve({"half space": certificate}, tmp_path / "curve.png", title="six images")
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma: expected a positive number"),
        ({"sigma": math.nan}, ValueError, "sigma"),
        ({"alpha": 0.0}, ValueError, "alpha: expected 0 < alpha < 1"),
        ({"alpha": 1.0}, ValueError, "alpha: expected 0 < alpha < 1"),
        ({"n": 9}, ValueError, r"n: expected at least 10, .* certified at alpha 0.001; got 9"),
        ({"n": 10.0}, TypeError, "n: expected an int"),
        ({"n_selection": 0}, ValueError, "n_selection"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"sample_ids": [0]}, ValueError, "sample_ids"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"labels: expected shape \(6,\)"),
        ({"images": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)}, TypeError, "images: expected float32"),
        ({"images": 2 * torch.ones(6, 1, 4, 4)}, ValueError, r"images: expected values in \[0.0, 1.0\]"),
        ({"model": "mnist-c"}, TypeError, "model: expected a module or callable"),
        ({"model": lambda x: x}, ValueError, r"model: expected logits of shape \(100, K\)"),
    ],
)  # fmt: skip
def test_wrong_arguments(half_space, images, changed, error, message):
    arguments = {"model": half_space, "images": images, "sigma": 0.3, "n": 100, "seed": 0, "progress": False} | changed
    with pytest.raises(error, match=message):
        certify(arguments.pop("model"), arguments.pop("images"), arguments.pop("labels", None), **arguments)


def test_the_smallest_n_certifies_and_one_less_cannot():
    for alpha in (0.5, 0.1, 0.001, 1e-9):
        assert alpha ** (1 / smallest_n(alpha)) > 0.5 >= alpha ** (1 / max(1, smallest_n(alpha) - 1))


def test_what_cannot_be_said(half_space, images):
    certificate = certify(half_space, images, sigma=0.3, n=100, seed=0, progress=False)
    with pytest.raises(ValueError, match="expected labels"):
        certificate.accuracy_at(0.1)
    empty = certify(half_space, images[:0], torch.zeros(0, dtype=torch.int64), sigma=0.3, n=100, seed=0, progress=False)
    with pytest.raises(ValueError, match="at least one image"):
        empty.accuracy_at(0.1)
    with pytest.raises(ValueError, match="radius"):
        empty.accuracy_at(-0.1)


def test_a_rival_has_no_denoiser_to_take(images):
    model = DefendedClassifier(fastmalade.Defense.from_pretrained("magnet-mnist"), lambda x: x.flatten(1))
    with pytest.raises(ValueError, match="expected a DefendedClassifier with a Purifier"):
        certify(model, torch.rand(2, 1, 28, 28), sigma=0.3, n=100, seed=0, progress=False)
