"""torch.func, forward-mode differentiation and batched cotangents: right numbers, through torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import fastmalade
from fastmalade import ChainConfig, DefendedClassifier, Purifier
from fastmalade.data import embedded_tensors

CHAIN = ChainConfig(n_steps=3, step_size=0.4, noise_scale=0.1)
KINDS = ["native", "user", "unfrozen", "value range"]


@pytest.fixture(params=KINDS)
def model(request, make_autoencoder, backend) -> Purifier:
    autoencoder = make_autoencoder().requires_grad_(request.param == "unfrozen")
    r = (lambda state: autoencoder(state)) if request.param == "user" else autoencoder
    value_range = (-1.0, 3.0) if request.param == "value range" else (0.0, 1.0)
    return Purifier(r, CHAIN, backend=backend, value_range=value_range)


def by_autograd(model, x, cotangent):
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(leaf, seed=3), leaf, cotangent)[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_reverse_mode(model, make_images):
    x, cotangent = make_images(3, 1, 8, 12), make_images(3, 1, 8, 12, seed=1)
    expected = by_autograd(model, x, cotangent)
    close(grad(lambda y: (model(y, seed=3) * cotangent).sum())(x), expected)
    out, pull = vjp(lambda y: model(y, seed=3), x)
    close(out, model(x, seed=3).detach())
    close(pull(cotangent)[0], expected)


def test_forward_mode(model, make_images):
    x, tangent, cotangent = (make_images(3, 1, 8, 12, seed=n) for n in range(3))
    backward = (by_autograd(model, x, cotangent) * tangent).sum()
    out, pushed = jvp(lambda y: model(y, seed=3), (x,), (tangent,))
    close(out, model(x, seed=3).detach())
    torch.testing.assert_close((pushed * cotangent).sum(), backward, rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(x, tangent), seed=3)
        close(forward_ad.unpack_dual(dual).tangent, pushed)


def test_jacobians(model, make_images):
    x = make_images(1, 1, 4, 4)

    def few(y):
        return model(y, seed=3).flatten()[::5]

    rows = []
    for n in range(4):
        leaf = x.clone().requires_grad_(True)
        rows.append(torch.autograd.grad(few(leaf)[n], leaf)[0])
    expected = torch.stack(rows)
    close(jacrev(few)(x), expected)
    close(jacfwd(few)(x), expected)
    for vectorize in (False, True):
        close(torch.autograd.functional.jacobian(few, x, vectorize=vectorize), expected)


def test_many_cotangents_at_once(model, make_images):
    x, many = make_images(2, 1, 8, 8).requires_grad_(True), make_images(5, 2, 1, 8, 8)
    expected = torch.stack([by_autograd(model, x.detach(), each) for each in many])
    close(torch.autograd.grad(model(x, seed=3), x, many, is_grads_batched=True)[0], expected)
    result = model(x, seed=3)
    close(vmap(lambda each: torch.autograd.grad(result, x, each, retain_graph=True)[0])(many), expected)


def test_many_cotangents_and_weights(make_autoencoder, make_images, backend):
    model, many = Purifier(make_autoencoder(), CHAIN, backend=backend), make_images(3, 2, 1, 8, 8)
    x, weights = make_images(2, 1, 8, 8), list(model.parameters())
    found = torch.autograd.grad(model(x, seed=3), weights, many, is_grads_batched=True)
    for n, each in enumerate(many):
        alone = torch.autograd.grad(model(x, seed=3), weights, each)
        for one, together in zip(alone, found, strict=True):
            torch.testing.assert_close(together[n], one, rtol=1e-5, atol=1e-5)


def test_images_one_by_one(model, make_images):
    x, ids = make_images(4, 1, 8, 8), torch.tensor([7, 0, 3, 2**40])
    found = vmap(lambda image, number: model(image[None], seed=3, sample_ids=number[None])[0])(x, ids)
    close(found, model(x, seed=3, sample_ids=ids).detach())
    per_image = vmap(grad(lambda image, number: model(image[None], seed=3, sample_ids=number[None]).sum()))(x, ids)
    leaf = x.clone().requires_grad_(True)
    close(per_image, torch.autograd.grad(model(leaf, seed=3, sample_ids=ids).sum(), leaf)[0])


def test_weights_as_arguments(make_autoencoder, make_images, backend):
    model, x = Purifier(make_autoencoder(), CHAIN, backend=backend), make_images(2, 1, 8, 8)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    found = grad(lambda given: functional_call(model, given, (x,), {"seed": 3}).square().sum())(weights)
    model(x, seed=3).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_given_noise(make_autoencoder, make_images, backend):
    model, x = Purifier(make_autoencoder().requires_grad_(False), CHAIN, backend=backend), make_images(2, 1, 8, 8)
    noise = torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = grad(lambda z: model(x, noise=z).square().sum())(noise)
    leaf = noise.clone().requires_grad_(True)
    model(x, noise=leaf).square().sum().backward()
    close(found, leaf.grad)


def test_the_shipped_defence_on_digits():
    digits, labels = embedded_tensors()
    defended = DefendedClassifier(
        Purifier.from_pretrained("malade-mnist"), fastmalade.load_classifier("mnist-c")
    ).eval()
    x, y = digits[:3], labels[:3]
    found = grad(lambda images: torch.nn.functional.cross_entropy(defended(images, seed=3), y))(x)
    leaf = x.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(defended(leaf, seed=3), y).backward()
    assert leaf.grad.abs().max() > 0
    torch.testing.assert_close(found, leaf.grad, rtol=0, atol=1e-3 * float(leaf.grad.abs().max()))


def in_forward_mode(defense, x):
    with forward_ad.dual_level():
        return defense.purify(forward_ad.make_dual(x, x), seed=3)


TRANSFORMED = {
    "vmap": lambda defense, x: vmap(lambda image: defense.purify(image[None], seed=3)[0])(x),
    "grad": lambda defense, x: grad(lambda images: defense.purify(images, seed=3).sum())(x),
    "forward": in_forward_mode,
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_purify_says_what_to_call_instead(make_autoencoder, make_defense, make_images, name):
    for defense in (Purifier(make_autoencoder(), CHAIN), make_defense("inc")):
        with pytest.raises(RuntimeError, match="call the module itself"):
            TRANSFORMED[name](defense, make_images(2, 1, 28, 28))
