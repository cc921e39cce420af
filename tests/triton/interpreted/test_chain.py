"""The chain and its gradient on the Triton kernels against float64 torch."""

from __future__ import annotations

import math

import pytest
import reference64
import torch
from torch import Tensor

from fastmalade.backends import triton as backend

INFINITY = math.inf
SEED = 2**63 + 7
# Channels, height, width, hidden channels, batch: Table 8's own; the smallest image; colour; more channels than a tile
# of the output has; fewer hidden channels than there are colours.
CASES = [
    (1, 28, 28, 10, 25, 1),
    (1, 4, 4, 3, 4, 3),
    (3, 8, 12, 2, 7, 2),
    (1, 12, 4, 3, 35, 2),
    (2, 4, 8, 1, 1, 2),
]


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(batch + width))


def ids_of(batch: int) -> Tensor:
    return torch.arange(batch) * 10**12 - 1


def drawn(batch: int, n_steps: int, shape: tuple[int, ...]) -> Tensor:
    """Noise (N, B, C, H, W) by the reference."""
    ids = ids_of(batch).tolist()
    steps = [torch.from_numpy(reference64.normals(SEED, ids, t, math.prod(shape))) for t in range(n_steps)]
    return torch.stack(steps).reshape(n_steps, batch, *shape)


def run(x: Tensor, weights, a, d, *, low=-INFINITY, high=INFINITY, **options) -> Tensor:
    options.setdefault("sample_ids", ids_of(x.shape[0]))
    n = len(a)
    return backend.langevin_chain(x, weights, a, d, [low] * n, [high] * n, **{"seed": SEED, **options})


def vjp(cotangent: Tensor, x: Tensor, weights, a, d, *, low=-INFINITY, high=INFINITY, **options) -> Tensor:
    options.setdefault("sample_ids", ids_of(x.shape[0]))
    n = len(a)
    arguments = (cotangent, x, weights, a, d, [low] * n, [high] * n)
    return backend.langevin_chain_vjp(*arguments, **{"seed": SEED, **options})


@pytest.mark.parametrize("case", CASES)
def test_states_within_the_tolerance_rule(case) -> None:
    *shape, hidden1, hidden2, batch = case
    weights = reference64.random_weights(shape[0], hidden1, hidden2)
    x, a, d = images(batch, *shape), [0.4, 0.3], [0.1, 0.2]
    noise = drawn(batch, 2, tuple(shape))
    exact = reference64.chain(x.double(), weights, a, d, noise, 0.1, 0.9)
    single = reference64.chain(x, weights, a, d, noise.float(), 0.1, 0.9)
    states = run(x, weights, a, d, low=0.1, high=0.9, trajectory=True)
    reference64.assert_within_rule(states, single, exact)
    assert torch.equal(states[0], x)


def test_the_result_is_the_last_state() -> None:
    weights, x, a, d = reference64.random_weights(2, 2, 3), images(3, 2, 4, 8), [0.4, 0.3], [0.1, 0.2]
    assert torch.equal(run(x, weights, a, d), run(x, weights, a, d, trajectory=True)[-1])


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradient_within_the_tolerance_rule(case, clamped: bool) -> None:
    *shape, hidden1, hidden2, batch = case
    weights = reference64.random_weights(shape[0], hidden1, hidden2, seed=3)
    x, a, d = images(batch, *shape), [0.5, 0.4], [0.1, 0.2]
    cotangent = images(batch, *shape).flip(-1) - 0.5
    noise = drawn(batch, 2, tuple(shape))
    low, high = (0.0, 0.8) if clamped else (-INFINITY, INFINITY)

    def by_autograd(dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        last = reference64.chain(leaf, weights, a, d, noise.to(dtype), low, high)[-1]
        return torch.autograd.grad(last, leaf, cotangent.to(dtype))[0]

    exact = by_autograd(torch.float64)
    if clamped:
        last = reference64.chain(x.double(), weights, a, d, noise, low, high)[-1]
        assert 0.05 < float(((last == low) | (last == high)).double().mean()) < 0.95
    result = vjp(cotangent, x, weights, a, d, low=low, high=high)
    reference64.assert_within_rule(result, by_autograd(torch.float32), exact)


@pytest.mark.parametrize("layer", [0, 2, 4, 8])
def test_every_tap_forward_and_backward(layer: int) -> None:
    # One tap of a layer at a time: a tap that is dropped, mirrored or reads past a border shows by itself.
    x = images(1, 1, 8, 4) + 0.5
    base = reference64.random_weights(1, 2, 3, seed=5)
    taps = base[layer].shape[-1]
    cotangent = images(1, 1, 8, 4).flip(-2) - 0.3
    for ky, kx in [(0, 0), (0, taps - 1), (1, 2), (taps // 2, taps // 2), (taps - 1, 1)]:
        weights = [w.clone() for w in base]
        kept = weights[layer][..., ky, kx].clone()
        weights[layer].zero_()
        weights[layer][..., ky, kx] = 4 * kept
        exact = x.double().requires_grad_()
        single = x.clone().requires_grad_()
        noise = torch.zeros(1, *x.shape)
        outs = [reference64.chain(leaf, weights, [0.9], [0.0], noise)[-1] for leaf in (single, exact)]
        reference64.assert_within_rule(run(x, weights, [0.9], [0.0]), outs[0].detach(), outs[1].detach())
        gradients = [
            torch.autograd.grad(out, leaf, cotangent.to(out.dtype))[0]
            for out, leaf in zip(outs, (single, exact), strict=True)
        ]
        reference64.assert_within_rule(vjp(cotangent, x, weights, [0.9], [0.0]), *gradients)


def test_given_noise_is_the_drawn_one_to_the_bit() -> None:
    shape = (2, 4, 8)
    weights, x, a, d = reference64.random_weights(2, 1, 2), images(3, *shape), [0.3, 0.2], [0.2, 0.1]
    ids = ids_of(3)
    noise = torch.stack([backend.standard_normal(SEED, ids, t, math.prod(shape)) for t in range(2)])
    noise = noise.reshape(2, 3, *shape)
    assert torch.equal(run(x, weights, a, d), run(x, weights, a, d, noise=noise))
    cotangent = torch.ones_like(x)
    drawn_gradient = vjp(cotangent, x, weights, a, d, low=0.2, high=0.8)
    assert torch.equal(drawn_gradient, vjp(cotangent, x, weights, a, d, low=0.2, high=0.8, noise=noise))


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, a, d = reference64.random_weights(1, 2, 3), images(5, 1, 8, 4), [0.3, 0.2], [0.2, 0.1]
    noise = images(10, 1, 8, 4).reshape(2, 5, 1, 8, 4)
    whole = [run(x, weights, a, d, noise=z, trajectory=True) for z in (None, noise)]
    gradient = vjp(x, x, weights, a, d)
    monkeypatch.setattr(backend, "MAX_WORKING_BYTES", 1)
    for z, states in zip((None, noise), whole, strict=True):
        assert torch.equal(run(x, weights, a, d, noise=z, trajectory=True), states)
        assert torch.equal(run(x, weights, a, d, noise=z), states[-1])
    assert torch.equal(vjp(x, x, weights, a, d), gradient)


def test_the_closed_interval_of_the_clamp() -> None:
    # Without step and noise x stays: elements on a bound pass the gradient, those outside do not.
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, 0.2, 0.3, 0.4]).repeat(2).reshape(1, 1, 4, 4)
    weights = reference64.random_weights(1, 2, 3)
    gradient = vjp(torch.ones_like(x), x, weights, [0.0], [0.0], low=0.0, high=1.0)
    assert torch.equal(gradient, ((x >= 0) & (x <= 1)).float())


def test_nan_stays_and_zero_noise_reads_none() -> None:
    weights, x = reference64.random_weights(1, 3, 4), images(2, 1, 4, 4)
    unread = torch.full((1, *x.shape), math.nan)
    assert torch.equal(run(x, weights, [0.3], [0.0]), run(x, weights, [0.3], [0.0], noise=unread))
    x[1, 0, 2, 2] = math.nan
    result = run(x, weights, [0.3], [0.1], low=0.0, high=1.0)
    assert torch.isnan(result[1, 0, 2, 2])
    assert bool(torch.isfinite(result[0]).all())


def test_layouts_empty_batches_and_no_steps() -> None:
    weights, x = reference64.random_weights(2, 1, 2), images(2, 2, 4, 8)
    expected = run(x, weights, [0.3], [0.1])
    result = run(x.to(memory_format=torch.channels_last), weights, [0.3], [0.1])
    assert torch.equal(result, expected)
    assert result.is_contiguous()
    assert run(x[:0], weights, [0.3], [0.1]).shape == (0, 2, 4, 8)
    assert torch.equal(run(x, weights, [], []), x)
    assert run(x, weights, [], [], trajectory=True).shape == (1, *x.shape)
    assert torch.equal(vjp(x, x, weights, [], []), x)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(1, 1, 6, 4)}, r"x: expected height and width multiples of 4, got \(1, 1, 6, 4\)"),
        ({"x": torch.zeros(1, 1, 4, 4).double()}, r"x: expected torch\.float32 .*got torch\.float64"),
        ({"x": torch.zeros(1, 2, 4, 4)}, r"conv1\.weight: expected .*\(2, 2, 5, 5\), got .*\(2, 1, 5, 5\)"),
        ({"weights": []}, r"weights: expected 10 tensors \(conv1\.weight.*got 0"),
        ({"a": [math.nan]}, "step_sizes: expected finite float32 values, got nan"),
        ({"d": [1e39]}, "noise_scales: expected finite float32 values"),
        ({"d": [0.1, 0.1]}, r"settings: expected N of each, got \[1, 2, 1, 1\]"),
        ({"low": 1.0, "high": 0.0}, r"clamp bounds: expected low <= high, got 1\.0 and 0\.0"),
        ({"precision": "fp8"}, "precision: expected one of fp32, tf32x3, tf32, got 'fp8'"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids: expected .*\(1\), got .*\(3,\)"),
        ({"noise": torch.zeros(1, 1, 1, 4, 5)}, r"noise: expected .*\(1, 1, 1, 4, 4\), got"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict, message: str) -> None:
    arguments = {"x": torch.zeros(1, 1, 4, 4), "weights": reference64.random_weights(1, 2, 3), "a": [0.1], "d": [0.1]}
    with pytest.raises(ValueError, match=message):
        run(**{**arguments, **changed})
