"""What every defence promises: input rules, randomness, gradient, files, use in a DefendedClassifier."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fastmalade
from fastmalade import Autoencoder, DefendedClassifier, Defense, PretrainedError, Purifier, check_gradient
from fastmalade.attacks import PGD
from fastmalade.defenses.unrolled import iterate


def test_seed_repeats_and_fresh_noise_differs(defense, images):
    first = defense(images, seed=3)
    assert first.shape == images.shape
    assert torch.equal(defense(images, seed=3), first)
    assert torch.equal(defense(images, seed=4), first) != defense.is_random
    torch.manual_seed(0)
    fresh = defense(images)
    torch.manual_seed(0)
    assert torch.equal(defense(images), fresh) != defense.is_random


def test_an_image_does_not_depend_on_its_batch(defense, images):
    whole = defense(images, seed=3, sample_ids=[9, 8, 7, 6, 5])
    parts = torch.cat(
        [defense(images[:2], seed=3, sample_ids=[9, 8]), defense(images[2:], seed=3, sample_ids=[7, 6, 5])]
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert torch.equal(defense(images[:0]), images[:0])


def test_the_gradient_is_the_derivative(defense, images):
    report = check_gradient(defense, images[:2], directions=2)
    assert report["derivative"].status == "PASS", str(report)
    assert report["rows"].status == "PASS", str(report)
    assert report["noise"].status == ("PASS" if defense.is_random else "INFO"), str(report)


def test_value_range(defense, images):
    # In float64, so that the rounding of the map is not blown up by the first steps of Adam.
    unit, wide = defense.double(), copy.deepcopy(defense).double()
    wide.value_range = (-1.0, 1.0)
    x = images.double()
    torch.testing.assert_close(wide(x * 2 - 1, seed=1), unit(x, seed=1) * 2 - 1, rtol=0, atol=1e-9)


def test_purify_takes_what_fastmalade_purify_takes(defense, images):
    expected = defense(images, seed=2).clamp(0, 1)
    array = images.numpy()[:, 0].copy()
    array.setflags(write=False)
    result = defense.purify(array, seed=2)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, expected[:, 0].numpy(), atol=1e-6)
    bytes_in = (images * 255).round().to(torch.uint8)
    assert defense.purify(bytes_in, seed=2).dtype == torch.uint8
    assert defense.purify(images.permute(0, 2, 3, 1), seed=2).shape == (5, 28, 28, 1)
    assert defense.purify(images[:0]).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x + 1, ValueError, "expected torch.float32 values in"),
        (lambda x: x * float("nan"), ValueError, "got NaN"),
        (lambda x: x.long(), TypeError, "images: expected dtype uint8"),
        (lambda x: x.tolist(), TypeError, "images: expected a torch tensor"),
        (lambda x: x[:, :, :, :27].expand(-1, 3, -1, -1), ValueError, "expected shape"),
    ],
)
def test_purify_refuses_bad_images(make_defense, images, change, error, message):
    for name in ("defense-gan", "inc", "magnet", "apudae-A", "dip-inc"):
        with pytest.raises(error, match=message):
            make_defense(name).purify(change(images))


def test_forward_refuses_bad_arguments(make_defense, images):
    for name in ("defense-gan", "inc", "autoencode", "magnet", "apudae-A"):
        defense = make_defense(name)
        with pytest.raises(TypeError, match=r"x: expected dtype torch\.float32"):
            defense(images.double())
        with pytest.raises(TypeError, match="x: expected a floating tensor, got list"):
            defense(images.tolist())
        with pytest.raises(ValueError, match="x: expected shape"):
            defense(images[0])
        with pytest.raises(TypeError, match="seed: expected an int"):
            defense(images, seed=0.5)
        with pytest.raises(ValueError, match="sample_ids: expected shape"):
            defense(images, sample_ids=[1])


def test_files_and_pickles(defense, images, tmp_path):
    path = tmp_path / "defense.safetensors"
    defense.save_pretrained(path, training={"seed": 3})
    loaded = Defense.from_pretrained(path)
    assert type(loaded) is type(defense)
    assert torch.equal(loaded(images, seed=1), defense(images, seed=1))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert fastmalade.pretrained.read_header(path)["training"] == {"seed": 3}
    for twin in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert torch.equal(twin(images, seed=1), defense(images, seed=1))


def test_the_promises_that_programs_rely_on(defense, images, make_defense):
    assert defense.channels == 1
    assert images.shape[2] % defense.multiple == 0
    assert defense.image_size in (None, (28, 28))
    assert set(defense.networks()) == {name for name, _ in defense.named_children()}
    assert json.loads(json.dumps(defense.settings())) == defense.settings()
    seed, ids = torch.tensor([3]), torch.tensor([9, 8, 7, 6, 5])
    for value_range in ((0.0, 1.0), (-1.0, 3.0)):
        defense.value_range = value_range
        x = images * (value_range[1] - value_range[0]) + value_range[0]
        found = defense.forward_from_device(x, seed, ids)
        # A seed that is read from memory is read by torch, whose normals differ from the native ones by rounding.
        torch.testing.assert_close(found, defense(x, seed=3, sample_ids=ids), rtol=0, atol=2e-2)
        assert defense.forward_from_device(x[:0], seed, ids[:0]).shape == x[:0].shape
    if not isinstance(defense, Purifier):
        with pytest.raises(TypeError, match=r"^n_steps: expected a Purifier to set this for, got"):
            defense.purify(images, n_steps=3)


class Shift(Defense):
    """A user's own defence; it can be saved because it names itself and its networks."""

    kind = "test-shift"

    def __init__(self, network, *, by=0.1, **options):
        super().__init__(**options)
        self.network, self.by = network, by

    def _purified(self, x, seed, sample_ids):
        return self.network(x) + self.by

    def networks(self):
        return {"network": self.network}

    def settings(self):
        return {"by": self.by}


def test_a_users_own_defence_registers_itself(images, tmp_path):
    defense, path = Shift(Autoencoder(1, (2, 3)), by=0.25).requires_grad_(False), tmp_path / "shift.safetensors"
    defense.save_pretrained(path)
    assert torch.equal(Shift.from_pretrained(path)(images), defense(images))
    assert torch.equal(fastmalade.purify(images, model=path), defense.purify(images))
    with pytest.raises(TypeError, match="kind: expected a name of its own for Thief, got that of MagNet"):
        type("Thief", (Defense,), {"kind": "magnet"})
    unnamed = type("Unnamed", (Shift,), {})(Autoencoder(1, (2, 3)))
    with pytest.raises(TypeError, match=r"defense: expected one of .*test-shift to save, got Unnamed"):
        unnamed.save_pretrained(path)


def test_files_of_another_kind(make_defense, tmp_path):
    path = tmp_path / "defense.safetensors"
    make_defense("inc").save_pretrained(path)
    with pytest.raises(PretrainedError, match="expected a MagNet, got InvertAndClassify"):
        type(make_defense("magnet")).from_pretrained(path)
    with pytest.raises(PretrainedError, match="expected kind purifier, got 'defense'"):
        fastmalade.Purifier.from_pretrained(path)
    other = make_defense("magnet")
    other.autoencoder = nn.Identity()
    with pytest.raises(TypeError, match=r"autoencoder: expected one of .* to save, got Identity"):
        other.save_pretrained(path)


def test_cost_grows_with_the_batch(defense):
    one, four = defense.cost(1), defense.cost(4)
    assert one.flops > 0
    assert (four.flops, four.forward_evaluations) == (4 * one.flops, 4 * one.forward_evaluations)
    with pytest.raises(ValueError, match="batch: expected at least 1"):
        defense.cost(0)


def test_in_front_of_a_classifier(defense, images, digits, fit_softmax):
    classifier = fit_softmax(*(part[:200] for part in digits))
    labels = digits[1][:5]
    model = DefendedClassifier(defense, classifier, seed=0).eval()
    torch.testing.assert_close(model(images), classifier(defense(images, seed=0)))
    result = PGD(epsilon=0.1, norm="linf", steps=2, step_size=0.05, seed=0)(model, images, labels)
    assert result.adversarial.shape == images.shape
    assert float((result.adversarial - images).abs().max()) <= 0.1 + 1e-6


def test_bpda_is_the_identity_on_the_way_back(make_defense, images):
    exact, replaced = make_defense("inc"), make_defense("inc")
    replaced.gradient = "bpda"
    x = images.clone().requires_grad_(True)
    value = replaced(x, seed=1)
    assert torch.equal(value.detach(), exact(images, seed=1))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    report = check_gradient(replaced, images[:2])
    assert "replaces it on purpose" in report["derivative"].detail
    # An attacker who asks for the exact gradient must not be given another one in silence.
    message = "gradient: expected 'bpda', which this InvertAndClassify states, got 'unrolled'"
    with pytest.raises(ValueError, match=message):
        DefendedClassifier(replaced, nn.Flatten())
    model = DefendedClassifier(replaced, nn.Flatten(), gradient="bpda")
    with pytest.raises(ValueError, match=message):
        PGD(epsilon=0.1, norm="linf", steps=1, step_size=0.1)(model, images, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("n_steps", [0, 1, 2, 3, 7, 10])
def test_iterate_has_the_gradient_of_a_plain_loop(n_steps):
    generator = torch.Generator().manual_seed(n_steps)
    x, a, b = (torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(3))

    def step(x, state, t):
        return torch.sin(state[0] + x * (t + 1)), state[0] * state[1] + 1.0

    def outcome(run, *tensors):
        leaves = [t.clone().requires_grad_(True) for t in tensors]
        first, second = run(leaves[0], leaves[1:])
        gradients = torch.autograd.grad((first * 2 + second.square()).sum(), leaves, allow_unused=True)
        return first, second, *(torch.zeros(4).double() if g is None else g for g in gradients)

    def plain(x, state):
        for t in range(n_steps):
            state = step(x, state, t)
        return state

    for found, expected in zip(
        outcome(lambda x, state: iterate(step, n_steps, x, state), x, a, b), outcome(plain, x, a, b), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
