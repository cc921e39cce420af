"""The registered operator: forward and gradients against float64, opcheck, double backward, torch.compile."""

from __future__ import annotations

import math

import pytest
import reference64
import torch

import fastmalade
from fastmalade import reference
from fastmalade.chain import operators as ops
from fastmalade.seeds import check_sample_ids

A, D = [0.5, 0.4, 0.3], [0.2, 0.0, 0.1]
FREE = ([-math.inf] * 3, [math.inf] * 3)
# Bounds inside the range of the images, so that the clamp acts on many pixels.
TIGHT = ([0.2] * 3, [0.7] * 3)
FINAL = ([-math.inf] * 2 + [0.2], [math.inf] * 2 + [0.7])


def call(x, weights, bounds, backend, *, seed=11, noise=None, a=A, d=D):
    lows, highs = ([b[0]] * len(a) for b in bounds) if len(bounds[0]) != len(a) else bounds
    ids = check_sample_ids(None, x.shape[0])
    return torch.ops.fastmalade.langevin_chain(
        x,
        list(weights),
        list(a),
        list(d),
        list(lows),
        list(highs),
        ops.seed_bits(seed),
        ids,
        noise,
        backend,
        None,
    )


def by_reference(x, model, bounds, *, seed=11, noise=None, a=A, d=D):
    lows, highs = ([b[0]] * len(a) for b in bounds) if len(bounds[0]) != len(a) else bounds
    return reference.langevin_chain(x, model, a, d, lows=lows, highs=highs, seed=seed, noise=noise)


@pytest.mark.parametrize("bounds", [FREE, TIGHT, FINAL], ids=["free", "every_step", "final"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 4, 8)])
def test_values_within_the_tolerance_rule(make_autoencoder, make_images, backend, bounds, channels, height, width):
    model = make_autoencoder(channels).requires_grad_(False)
    exact_model = make_autoencoder(channels).double()
    x = make_images(17, channels, height, width)
    in_float32 = by_reference(x, model, bounds)
    exact = by_reference(x.double(), exact_model, bounds)
    reference64.assert_within_rule(call(x, model.weights(), bounds, backend), in_float32, exact)


@pytest.mark.parametrize("bounds", [FREE, TIGHT, FINAL], ids=["free", "every_step", "final"])
@pytest.mark.parametrize("batch", [1, 7, 17])
def test_input_gradient_within_the_tolerance_rule(make_autoencoder, make_images, backend, bounds, batch):
    model = make_autoencoder().requires_grad_(False)
    exact_model = make_autoencoder().double().requires_grad_(False)
    x = make_images(batch, 1, 28, 28)
    cotangent = make_images(batch, 1, 28, 28, seed=4) - 0.5

    def gradient(evaluate, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(evaluate(x), x, cotangent.to(x.dtype))[0]

    got = gradient(lambda x: call(x, model.weights(), bounds, backend), x)
    in_float32 = gradient(lambda x: by_reference(x, model, bounds), x)
    exact = gradient(lambda x: by_reference(x, exact_model, bounds), x.double())
    reference64.assert_within_rule(got, in_float32, exact)
    assert float(exact.abs().max()) > 0.01


@pytest.mark.parametrize("bounds", [FREE, TIGHT], ids=["free", "every_step"])
def test_weight_and_noise_gradients_within_the_tolerance_rule(make_autoencoder, make_images, backend, bounds):
    x = make_images(5, 1, 12, 8)
    noise = make_images(3, 5, 1, 12, 8, seed=6) * 4 - 2

    def gradients(evaluate, dtype):
        model = make_autoencoder(dtype=dtype)
        inputs = x.to(dtype).requires_grad_(), noise.to(dtype).requires_grad_()
        result = evaluate(inputs[0], model, inputs[1])
        return torch.autograd.grad(result.square().sum(), (*inputs, *model.weights()))

    got = gradients(lambda x, m, z: call(x, m.weights(), bounds, backend, noise=z), torch.float32)
    in_float32 = gradients(lambda x, m, z: by_reference(x, m, bounds, noise=z), torch.float32)
    exact = gradients(lambda x, m, z: by_reference(x, m, bounds, noise=z), torch.float64)
    assert len(got) == 12
    for triple in list(zip(got, in_float32, exact, strict=True))[:2]:
        reference64.assert_within_rule(*triple)
    # A weight's gradient is a sum over images and pixels, for a bias a single number in which rounding errors
    # may cancel by luck: the rule is applied to the ten together, each in units of its largest component.
    scales = [float(e.abs().max()) for e in exact[2:]]
    together = [
        torch.cat([(g.double() / scale).flatten() for g, scale in zip(gradients, scales, strict=True)])
        for gradients in (got[2:], in_float32[2:], exact[2:])
    ]
    reference64.assert_within_rule(*together)
    # The second step has no noise, so nothing depends on the noise given for it.
    assert float(got[1][1].abs().max()) == 0.0
    assert float(got[1][0].abs().max()) > 0.0


def test_gradcheck_of_the_operator(make_autoencoder, make_images):
    weights = make_autoencoder(1, (2, 3), dtype=torch.float64).weights()
    x = make_images(2, 1, 4, 4, dtype=torch.float64).requires_grad_()
    noise = (make_images(3, 2, 1, 4, 4, dtype=torch.float64, seed=2) - 0.5).requires_grad_()
    torch.autograd.gradcheck(lambda x, z, *w: call(x, w, TIGHT, "torch", noise=z), (x, noise, *weights), fast_mode=True)


def test_only_what_requires_grad_gets_one(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)
    model.conv2.bias.requires_grad_()
    call(make_images(2, 1, 8, 8), model.weights(), FREE, backend).sum().backward()
    assert model.conv2.bias.grad is not None
    assert all(w.grad is None for w in model.weights() if w is not model.conv2.bias)


def test_clamp_gradient_on_the_closed_interval(make_autoencoder, backend):
    """Without a step size x stays as it is: pixels on a bound pass the gradient, pixels outside do not."""
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0] * 4).reshape(1, 1, 4, 4).requires_grad_()
    unit = ([0.0] * 2, [1.0] * 2)
    result = call(x, make_autoencoder().requires_grad_(False).weights(), unit, backend, a=[0.0] * 2, d=[0.0] * 2)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.flatten().tolist() == [0.0, 1.0, 1.0, 1.0] * 4


def test_zero_steps_and_empty_batches(make_autoencoder, make_images, backend):
    weights = make_autoencoder().requires_grad_(False).weights()
    x = make_images(3, 1, 8, 8).requires_grad_()
    result = call(x, weights, ([], []), backend, a=[], d=[])
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], torch.ones_like(x))
    empty = make_images(0, 1, 8, 8).requires_grad_()
    result = call(empty, weights, FREE, backend)
    assert result.shape == (0, 1, 8, 8)
    assert torch.autograd.grad(result.sum(), empty)[0].shape == (0, 1, 8, 8)


def test_non_contiguous_images(make_autoencoder, make_images, backend):
    weights = make_autoencoder(3).requires_grad_(False).weights()
    x = make_images(3, 3, 8, 12)
    strided = make_images(3, 3, 12, 8).copy_(x.transpose(2, 3)).transpose(2, 3)
    cotangent = make_images(3, 3, 12, 8, seed=3).transpose(2, 3)
    results = []
    for images in (x, strided, x.to(memory_format=torch.channels_last)):
        leaf = images.detach().requires_grad_()
        result = call(leaf, weights, TIGHT, backend)
        assert result.is_contiguous()
        results.append((result.detach(), torch.autograd.grad(result, leaf, cotangent)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][0], results[2][0])


def test_double_backward_raises(make_autoencoder, make_images, backend):
    x = make_images(2, 1, 8, 8).requires_grad_()
    result = call(x, make_autoencoder().requires_grad_(False).weights(), FREE, backend)
    (gradient,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("explicit_noise", [False, True])
@pytest.mark.slow
def test_opcheck(make_autoencoder, make_images, backend, explicit_noise):
    x = make_images(3, 1, 8, 8).requires_grad_()
    weights = list(make_autoencoder(1, (3, 5)).weights())
    noise = make_images(3, 3, 1, 8, 8).requires_grad_() if explicit_noise else None
    ids, seed = check_sample_ids(None, 3), ops.seed_bits(1)
    chain = (x, weights, A, D, *TIGHT, seed, ids, noise, backend, None)
    torch.library.opcheck(torch.ops.fastmalade.langevin_chain.default, chain)
    detached = [w.detach() for w in weights]
    for budget, with_weights in ((None, True), (10**9, False)):
        backward = (
            x.detach(),
            x.detach(),
            detached,
            A,
            D,
            *TIGHT,
            seed,
            ids,
            None,
            backend,
            budget,
            with_weights,
            False,
        )
        torch.library.opcheck(torch.ops.fastmalade.langevin_chain_backward.default, backward)


def test_opcheck_of_the_noise_operators(make_images, backend):
    arguments = (ops.seed_bits(1), check_sample_ids(None, 3), 2, make_images(3, 1, 8, 8), backend)
    torch.library.opcheck(torch.ops.fastmalade.standard_normal.default, arguments)
    # Fresh seeds differ between two runs, so only the static checks apply.
    torch.library.opcheck(
        torch.ops.fastmalade.fill_fresh_seed_.default,
        (torch.zeros(1, dtype=torch.int64),),
        test_utils=("test_autograd_registration", "test_faketensor"),
    )


def test_the_operator_refuses_a_precision_that_the_backend_lacks(make_autoencoder, make_images, backend):
    x, weights = make_images(1, 1, 8, 8), [w.detach() for w in make_autoencoder(1, (3, 5)).weights()]
    rest = (weights, A, D, *TIGHT, ops.seed_bits(1), check_sample_ids(None, 1), None, backend, None)
    message = f"precision: expected fp32 on the backend {backend}, got 'tf32'"
    with pytest.raises(ValueError, match=message):
        torch.ops.fastmalade.langevin_chain(x, *rest, precision="tf32")
    for wanted in (True, False):
        with pytest.raises(ValueError, match=message):
            torch.ops.fastmalade.langevin_chain_backward(x, x, *rest, wanted, False, precision="tf32")
    torch.library.opcheck(torch.ops.fastmalade.langevin_chain.default, (x.requires_grad_(), *rest, "fp32"))


def test_unknown_backend(make_autoencoder, make_images):
    with pytest.raises(ValueError, match="backend: expected"):
        call(make_images(1, 1, 8, 8), make_autoencoder().weights(), FREE, "tpu")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_chain_draws_fresh_seeds(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(2, 1, 8, 8)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(x):
        return [fastmalade.langevin_chain(x, model, A, D, backend=backend) for _ in range(2)]

    # With and without gradients: only the former passes through common-subexpression elimination.
    for requires_grad in (False, True):
        leaf = x.clone().requires_grad_(requires_grad)
        results = [y.detach() for y in (*twice(leaf), *twice(leaf))]
        for k in range(4):
            assert all(not torch.equal(results[k], other) for other in results[k + 1 :])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_chain_equals_eager(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)

    def gradient(evaluate):
        x = make_images(2, 1, 8, 8).requires_grad_()
        y = evaluate(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    def chain(x):
        return fastmalade.langevin_chain(x, model, A, D, seed=2**64 - 5, clamp=(0.0, 1.0), backend=backend)

    compiled = gradient(torch.compile(chain, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled, gradient(chain), rtol=0, atol=0)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_chain_of_a_user_module_draws_fresh_seeds(make_images):
    module = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    x = make_images(2, 1, 5, 5).requires_grad_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(x):
        return [fastmalade.langevin_chain(x, module, A, D) for _ in range(2)]

    results = [y.detach() for y in (*twice(x), *twice(x))]
    for k in range(4):
        assert all(not torch.equal(results[k], other) for other in results[k + 1 :])
