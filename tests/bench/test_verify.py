"""Verification finds what is wrong with a contender."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastmalade.bench.contenders.eager import Eager
from fastmalade.bench.task import make_images, make_task
from fastmalade.bench.verify import VerificationError, check_noise, make_cotangent, verify, verify_gradient


def test_a_right_contender_passes(fake, task):
    found = verify(fake(), "", task, make_images(task))
    assert found.error <= found.allowed
    assert all(0.9 < ratio < 1.1 for ratio in found.noise.values())


def in_place(result, images):
    images += 0.25
    return result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"result": lambda result, images: result + np.float32(2e-4)}, "noiseless result: expected within"),
        ({"result": lambda result, images: result.astype(np.float64)}, "result: expected float32 .* got float64"),
        ({"result": lambda result, images: result[:, :, :4]}, r"expected float32 .* got float32 \(5, 1, 4, 12\)"),
        ({"result": lambda result, images: result * np.float32("nan")}, "noiseless result: expected within .* got nan"),
        ({"result": in_place}, "expected the input to be left alone"),
        (
            {"task": lambda t: dataclasses.replace(t, chain=t.chain.replace(n_steps=t.n_steps - 1))},
            "noiseless result",
        ),
        (
            {"task": lambda t: dataclasses.replace(t, chain=t.chain.replace(noise_scale=t.chain.noise_scale * 0.9))},
            r"noise over pixels: expected .* got 0\.[78]",
        ),
    ],
)  # fmt: skip
def test_wrong_contenders_do_not(fake, task, options, message):
    with pytest.raises(VerificationError, match=message):
        verify(fake(**options), "", task, make_images(task))


class _Noise:
    """What a chain that only adds noise returns, drawn in a way that ``draw`` gets wrong."""

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(5)

    def __call__(self, images):
        return (images + 0.05 * self.draw(self.rng, images.shape)).astype(np.float32)


def frozen(shape):
    noise = np.random.default_rng(1).standard_normal(shape)
    return (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda rng, shape: frozen(shape), "noise over calls"),
        (lambda rng, shape: np.broadcast_to(rng.standard_normal(shape[1:]), shape), "noise over images"),
        (lambda rng, shape: rng.standard_normal(shape) + 0.1, "noise: expected mean 0"),
        (lambda rng, shape: rng.standard_normal(shape) * 1.05, "noise over pixels"),
    ],
)
def test_noise_that_is_not_fresh_or_not_independent_is_found(draw, message):
    with pytest.raises(VerificationError, match=message):
        check_noise(_Noise(draw), np.zeros((16, 1, 8, 12), np.float32))


def test_good_noise_passes_also_for_a_single_image():
    good = _Noise(lambda rng, shape: rng.standard_normal(shape))
    assert set(check_noise(good, np.zeros((16, 1, 8, 12), np.float32))) == {"pixels", "calls", "images"}
    assert set(check_noise(good, np.zeros((1, 1, 8, 12), np.float32))) == {"pixels", "calls"}


def test_a_wrong_gradient_is_found():
    class Wrong(Eager):
        def prepare_gradient(self, task, form, cotangent):
            right = super().prepare_gradient(task, form, cotangent)
            return lambda images: right(images) * np.float32(1.01)

    task = make_task((1, 8, 12), 3, 2)
    images = make_images(task)
    cotangent = make_cotangent(task, images)
    assert 0 < np.count_nonzero(cotangent) <= cotangent.size
    verify_gradient(Eager(), "", task, images, cotangent)
    with pytest.raises(VerificationError, match="gradient: expected within"):
        verify_gradient(Wrong(), "", task, images, cotangent)


def test_the_native_chain_is_held_to_the_rule_of_its_kernels(fake, task):
    images = make_images(task)
    native = fake(result=lambda result, images: result + np.float32(2e-5))
    assert verify(native, "", task, images).error > 1e-5
    native.is_peer = False
    with pytest.raises(VerificationError, match="noiseless result"):
        verify(native, "", task, images)
