"""The edges of the value range: rounding is clamped, everything else is refused and located, one range for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_defenses import small_defense
from torch.nn import functional as F

from fastmalade import DefendedClassifier, Purifier, train_classifier
from fastmalade.attacks import FGSM, PGD
from fastmalade.attacks.substitute import train_substitute_purifier
from fastmalade.checks import check_range, check_unit_images, rounding_of_range
from fastmalade.models.denoiser import SkipDenoiser

SETTINGS = {
    "half": (0.5, 0.5),
    "mnist": (0.1307, 0.3081),
    "fashion": (0.286, 0.353),
    "imagenet grey": (0.449, 0.226),
    "cifar grey": (0.4734, 0.2516),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAN = float("nan")


def range_of(mean: float, std: float) -> tuple[float, float]:
    return (0 - mean) / std, (1 - mean) / std


def normalised(images: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """As torchvision's Normalize does it: in the dtype of the images."""
    return (images - torch.tensor([mean], dtype=images.dtype)) / torch.tensor([std], dtype=images.dtype)


def defense_of(name: str, value_range: tuple[float, float] = (0.0, 1.0)):
    if name == "any r(x)":
        return Purifier(lambda x: x * 0.5 + 0.2, small_defense("malade").chain, value_range=value_range)
    return small_defense(name, value_range)


@pytest.mark.parametrize("name", ["malade", "any r(x)", "magnet"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images_normalised_in_their_own_precision(digits, name, dtype):
    # Float64 images have often been float32 ones.
    images = digits[0][::50].to(torch.float32 if dtype == torch.float64 else dtype)
    left = 0
    for mean, std in SETTINGS.values():
        low, high = range_of(mean, std)
        x = normalised(images, mean, std).to(dtype)
        before, exact = x.clone(), x.double()
        left += bool(exact.min() < low or exact.max() > high)
        result = defense_of(name, (low, high)).purify(x, seed=1)
        assert (result.dtype, result.shape) == (dtype, x.shape)
        assert torch.equal(x, before)
        expected = defense_of(name, (low, high)).purify(exact.clamp(low, high).float(), seed=1)
        slack = 4 * torch.finfo(dtype).eps * max(-low, high) + 1e-5
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=slack)
    assert left >= 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("malade", "any r(x)", "magnet") for kind in ("torch", "numpy", "read-only numpy")),
        ("malade", "channels last"),
        ("magnet", "channels last"),
    ],
)
def test_resized_images(digits, name, kind):
    """Bilinear weights add up to 1 and a few units in the last place; the other end is what a subtraction leaves."""
    x = F.interpolate(digits[0][:64] * 0.0 + 1.0, size=(12, 20), mode="bilinear", antialias=True)
    x[1] *= digits[0][1, :, 8:20, 4:24]
    x[2, 0, 3, 5] = -1e-9
    assert 1.0 < float(x.max()) <= 1.0000005
    clean = x.clamp(0.0, 1.0)
    images = x if kind == "torch" else x.permute(0, 2, 3, 1).contiguous() if kind == "channels last" else x.numpy()
    if kind == "read-only numpy":
        images = images.copy()
        images.setflags(write=False)
    result = defense_of(name).purify(images, seed=1)
    assert type(result) is type(images)
    assert float(x.max()) > 1.0
    assert float(images.max()) == float(x.max())
    assert float(images.min()) == float(torch.tensor(-1e-9))
    found = torch.as_tensor(result).reshape(clean.shape)
    assert torch.equal(found, defense_of(name).purify(clean, seed=1))
    twice = defense_of(name).purify(x.double(), seed=1)
    assert torch.equal(twice, defense_of(name).purify(clean, seed=1).double())


def test_resized_by_pillow(digits):
    full = Image.fromarray(np.full((57, 61), 1.0, dtype=np.float32))
    sides = [(8, 8), (12, 20), (28, 28), (36, 44)]
    methods = [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.HAMMING, Image.Resampling.LANCZOS]
    resized = [np.asarray(full.resize(size, method)) * np.float32(1 + 1e-7) for size in sides for method in methods]
    assert all(image.max() > 1.0 for image in resized)
    for image in resized:
        assert small_defense("malade").purify(image, seed=1).shape == image.shape


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (-0.4242129, 2.8214865), (0.0, 255.0), (5.0, 6.0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_is_four_eps(dtype, bounds):
    low, high = bounds
    defense = small_defense("malade", bounds)
    eps = max(torch.finfo(dtype).eps, 2.0**-23)
    assert rounding_of_range(dtype, low, high) == 4 * eps * max(abs(low), abs(high))
    for end, sign in ((low, -1), (high, 1)):
        x = torch.full((5, 1, 8, 12), (low + high) / 2, dtype=dtype)
        x[3, 0, 1, 2] = end + sign * 2.5 * eps * max(abs(low), abs(high))
        result = defense.purify(x, n_steps=0)
        assert float(result[3, 0, 1, 2]) == float(torch.tensor(end, dtype=torch.float32).to(dtype))
        x[3, 0, 1, 2] = end + sign * 8 * eps * max(abs(low), abs(high))
        with pytest.raises(ValueError, match=r"rescale .*\(1 value in 1 of 5 images, the first in image 3"):
            defense.purify(x)


@pytest.mark.parametrize("name", ["malade", "any r(x)", "magnet"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("value", "found"), [(NAN, "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")])
def test_values_that_are_not_finite_are_counted(make_images, name, dtype, value, found):
    x = make_images(7, 1, 8, 8).to(dtype)
    x[2, 0, 1, 5] = x[2, 0, 7, 7] = x[5, 0, 0, 0] = value
    message = rf"images: expected finite values in .* got {found}: 3 values in 2 of 7 images, the first in image 2"
    for images in (x, x[:, 0]) if name == "malade" else (x,):
        with pytest.raises(ValueError, match=message):
            defense_of(name).purify(images)
    with pytest.raises(ValueError, match="1 value in 1 of 1 images, the first in image 0"):
        defense_of(name).purify(x[5:6])


def test_images_of_other_layouts_are_counted(make_images):
    x = make_images(3, 1, 8, 12)
    x[1, 0, 2:4, 3] = NAN
    for images in (x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).numpy(), x[:, 0].numpy()):
        with pytest.raises(ValueError, match="got NaN: 2 values in 1 of 3 images, the first in image 1"):
            small_defense("malade").purify(images)
    with pytest.raises(ValueError, match="got NaN: 2 values in 1 of 1 images, the first in image 0"):
        small_defense("malade").purify(x[1, 0])
    x[2] = 7.0
    with pytest.raises(ValueError, match="got NaN: 2 values in 1 of 3 images, the first in image 1"):
        small_defense("malade").purify(x)


def test_results_that_are_not_finite_are_counted(make_images):
    x = make_images(4, 1, 8, 8) * 0.5
    x[2, 0, 0, :3] = 0.75
    purifier = Purifier(
        lambda x: torch.where(x > 0.7, torch.inf, x), small_defense("malade").chain.replace(clamp="none")
    )
    with pytest.raises(FloatingPointError, match=r"3 values in 1 of 4 images, the first in image 2"):
        purifier.purify(x, n_steps=1, noise_scale=0.0)
    wild = {"n_steps": 30, "step_size": 1e30, "clamp": "none"}
    for images in (x, x.double(), x[:, 0]):
        with pytest.raises(FloatingPointError, match=r"chain diverged.* in 4 of 4 images, the first in image 0"):
            small_defense("malade").purify(images, **wild)


GOOD_RANGES = [
    (-1, 1),
    [-1.0, 1.0],
    np.array([-1.0, 1.0]),
    torch.tensor([-1.0, 1.0], dtype=torch.bfloat16),
    (torch.tensor(-1.0), torch.tensor([1.0])),
    ([-1.0], (np.float32(1.0),)),
    np.array([[-1.0], [1.0]]),
]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
BAD_RANGES = [
    (
        (-MEAN / STD, (1 - MEAN) / STD),
        ValueError,
        "one low and one high for all channels, got 3 and 3 numbers.*classif",
    ),
    (((-MEAN / STD).numpy(), ((1 - MEAN) / STD).numpy()), ValueError, "got 3 and 3 numbers; for bounds that differ"),
    (((-MEAN / STD).tolist(), 1.0), ValueError, "got 3 and 1 numbers"),
    ((0.0, [1.0, 1.0]), ValueError, "got 1 and 2 numbers"),
    (torch.stack([-MEAN / STD, (1 - MEAN) / STD]), ValueError, "got 3 and 3 numbers"),
    (np.zeros((2, 3, 1, 1)), ValueError, "got 3 and 3 numbers"),
    (([], []), ValueError, "got 0 and 0 numbers"),
    ([(0.0, 1.0)] * 3, ValueError, "got 3 entries"),
    ((0.0,), ValueError, "got 1 entries"),
    ((0.0, NAN), ValueError, "finite"),
    ((torch.tensor(NAN), 1.0), ValueError, "finite"),
    (np.array([NAN, NAN]), ValueError, "finite"),
    ((0.0, float("inf")), ValueError, "finite"),
    ((1.0, 0.0), ValueError, "low < high"),
    (torch.tensor([1.0, -1.0]), ValueError, "low < high"),
    (([1.0], [1.0]), ValueError, "low < high"),
    (None, TypeError, "got None"),
    (1.0, TypeError, "got 1.0"),
    (torch.tensor(1.0), TypeError, "got tensor"),
    ("01", TypeError, "got '01'"),
    (("0", "1"), TypeError, "got"),
    ((0.0, None), TypeError, "got"),
    (([0.0, [1.0, 2.0]], 1.0), TypeError, "got"),
]


@pytest.mark.parametrize("given", GOOD_RANGES, ids=repr)
def test_ranges_taken(given):
    for name in ("malade", "magnet", "inc"):
        found = small_defense(name, given).value_range
        assert found == (-1.0, 1.0)
        assert [type(bound) for bound in found] == [float, float]
    x, labels = torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2])
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    FGSM(epsilon=0.1)(flat, x, labels, value_range=given, progress=False)
    FGSM(epsilon=0.1)(
        DefendedClassifier(small_defense("malade", (-1, 1)), flat), x, labels, value_range=given, progress=False
    )


@pytest.mark.parametrize(("given", "error", "message"), BAD_RANGES, ids=repr)
def test_ranges_refused(given, error, message):
    for name in ("malade", "magnet", "inc"):
        with pytest.raises(error, match=rf"(?s)value_range: expected .*{message}"):
            small_defense(name, given)
    x, labels = torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2])
    if given is not None:
        for model in (torch.nn.Flatten(), DefendedClassifier(small_defense("malade"), torch.nn.Flatten())):
            with pytest.raises(error, match=rf"(?s)value_range: expected .*{message}"):
                FGSM(epsilon=0.1)(model, x, labels, value_range=given, progress=False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_attacks_on_normalised_images(digits, setting):
    """Their dtype holds neither the range's bounds nor, by rounding, the images themselves."""
    low, high = range_of(*SETTINGS[setting])
    x, labels = normalised(digits[0][::100], *SETTINGS[setting]), digits[1][::100]
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).requires_grad_(False)
    defended = DefendedClassifier(small_defense("malade", (low, high)), flat).eval()
    bounds = torch.tensor([low, high])
    for attack in (FGSM(epsilon=0.2), PGD(epsilon=0.2, steps=2), PGD(epsilon=0.0, steps=1)):
        for model, options in ((defended, {}), (flat, {"value_range": (low, high)})):
            found = attack(model, x, labels, progress=False, **options).adversarial
            assert found.min() >= bounds[0]
            assert found.max() <= bounds[1]
            torch.testing.assert_close(found, x.clamp(*bounds), rtol=0, atol=attack.epsilon + 1e-6)


def test_training_on_images_that_leave_by_rounding(digits):
    images = F.interpolate(digits[0][:40] * 0.0 + 1.0, size=(28, 28), mode="bilinear") * (1 + 1.2e-7)
    images[::2] = digits[0][:40:2]
    assert float(images.max()) > 1.0
    labels = digits[1][:40] % 3
    options = {"epochs": 1, "batch_size": 20, "progress": False}
    first, _ = train_classifier("A", images, labels, **options)
    second, _ = train_classifier("A", images.clamp(0, 1), labels, **options)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_check_range_clamps_a_copy(dtype):
    x = torch.full((3, 1, 4, 4), 0.5, dtype=dtype)
    assert check_range(x, (0.0, 1.0)) is x
    assert check_unit_images(x) is x
    x[1, 0, 2, 2] = 1 + 2 * max(torch.finfo(dtype).eps, 2.0**-23)
    before = x.clone()
    for found in (check_range(x, (0.0, 1.0)), check_unit_images(x)):
        assert torch.equal(found, x.clamp(0, 1))
        assert torch.equal(x, before)
    x[2, 0, 0, 0] = 1.1
    for check in (lambda: check_range(x, (0.0, 1.0)), lambda: check_unit_images(x)):
        with pytest.raises(ValueError, match=r"1 value in 1 of 3 images, the first in image 2"):
            check()
    x[0, 0, 0, :2] = NAN
    for check in (lambda: check_range(x, (0.0, 1.0)), lambda: check_unit_images(x)):
        with pytest.raises(ValueError, match=r"got .?nan.*3 values in 2 of 3 images, the first in image 0"):
            check()


def test_substitutes_of_normalised_images(digits):
    low, high = range_of(*SETTINGS["mnist"])
    x = normalised(digits[0][:6], *SETTINGS["mnist"])
    assert float(x.min()) < low
    substitute = SkipDenoiser(1, 2, 1)
    defense = small_defense("malade", (low, high))
    train_substitute_purifier(substitute, defense, x, epochs=1, query_batch=3, progress=False)
