"""The chain and its gradient on the Triton kernels against float64 torch."""

from __future__ import annotations

import math

import pytest
import reference64
import torch
from torch import Tensor

import fastmalade
from fastmalade.backends.triton import calls as backend
from fastmalade.backends.triton import stages as triton_stages
from fastmalade.backends.values import NoiseSource, Steps

INFINITY = math.inf
SEED = 2**63 + 7
# Channels, height, width, hidden channels, batch: Table 8's own; the smallest image; colour; more channels than a tile
# of the output has, and fewer than there are colours. Then the number of steps, and the clamp.
CASES = [
    ((1, 28, 28, 10, 25, 1), 1, (0.0, 0.8)),
    ((1, 4, 4, 2, 3, 3), 2, (0.0, 0.8)),
    ((3, 4, 8, 1, 5, 1), 1, (0.2, INFINITY)),
    ((2, 8, 4, 1, 35, 1), 1, (-INFINITY, INFINITY)),
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


def source(x: Tensor, options: dict) -> NoiseSource:
    """The noise that ``options`` ask for, which are taken out of them."""
    seed, ids = options.pop("seed", SEED), options.pop("sample_ids", ids_of(x.shape[0]))
    return NoiseSource(seed, ids, options.pop("noise", None))


def run(x: Tensor, weights, a, d, *, low=-INFINITY, high=INFINITY, **options) -> Tensor:
    n = len(a)
    return backend.langevin_chain(x, weights, Steps(a, d, [low] * n, [high] * n), source(x, options), **options)


def vjp(cotangent: Tensor, x: Tensor, weights, a, d, *, low=-INFINITY, high=INFINITY, **options) -> Tensor:
    n = len(a)
    steps = Steps(a, d, [low] * n, [high] * n)
    return backend.chain_gradient(cotangent, x, weights, steps, source(x, options), **options)


def by_autograd(x: Tensor, weights, a, d, noise: Tensor, bounds, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """All states, and the gradient with respect to x, in the dtype of ``x``."""
    leaf = x.clone().requires_grad_()
    states = reference64.chain(leaf, weights, a, d, noise.to(x.dtype), *bounds)
    return states.detach(), torch.autograd.grad(states[-1], leaf, cotangent.to(x.dtype))[0]


@pytest.mark.parametrize(("case", "n_steps", "bounds"), CASES)
def test_states_and_gradient_within_the_tolerance_rule(case, n_steps: int, bounds) -> None:
    # The weights are random: a tap that is dropped, mirrored or reads past a border is far outside the rule.
    *shape, hidden1, hidden2, batch = case
    weights = reference64.random_weights(shape[0], hidden1, hidden2, seed=3)
    x, a, d = images(batch, *shape), [0.5, 0.4][:n_steps], [0.1, 0.2][:n_steps]
    cotangent = images(batch, *shape).flip(-1) - 0.5
    noise = drawn(batch, n_steps, tuple(shape))
    exact = by_autograd(x.double(), weights, a, d, noise, bounds, cotangent)
    single = by_autograd(x, weights, a, d, noise, bounds, cotangent)
    low, high = bounds
    if low > -INFINITY:
        assert 0.05 < float(((exact[0][-1] == low) | (exact[0][-1] == high)).double().mean()) < 0.95
    states = run(x, weights, a, d, low=low, high=high, trajectory=True)
    reference64.assert_within_rule(states, single[0], exact[0])
    assert torch.equal(states[0], x)
    gradient = vjp(cotangent, x, weights, a, d, low=low, high=high)
    reference64.assert_within_rule(gradient, single[1], exact[1])


def test_the_result_is_the_last_state() -> None:
    weights, x, a, d = reference64.random_weights(1, 2, 3), images(2, 1, 4, 8), [0.4, 0.3], [0.1, 0.2]
    assert torch.equal(run(x, weights, a, d), run(x, weights, a, d, trajectory=True)[-1])


def test_given_noise_is_the_drawn_one_to_the_bit() -> None:
    shape = (1, 4, 8)
    weights, x, a, d = reference64.random_weights(1, 1, 2), images(3, *shape), [0.3], [0.2]
    noise = backend.standard_normal(SEED, ids_of(3), 0, math.prod(shape)).reshape(1, 3, *shape)
    assert torch.equal(run(x, weights, a, d), run(x, weights, a, d, noise=noise))
    cotangent = torch.ones_like(x)
    drawn_gradient = vjp(cotangent, x, weights, a, d, low=0.2, high=0.8)
    assert torch.equal(drawn_gradient, vjp(cotangent, x, weights, a, d, low=0.2, high=0.8, noise=noise))


@pytest.mark.parametrize("precision", ["fp32", "tf32x3", "tf32"])
def test_the_public_chain_hands_its_precision_on(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    # The interpreter computes every precision alike, so what counts here is what the products are asked for.
    asked, model_of = [], triton_stages.Model

    def spy(*arguments, **options):
        asked.append(options["precision"])
        return model_of(*arguments, **options)

    monkeypatch.setattr(triton_stages, "Model", spy)
    model = fastmalade.Autoencoder(1, (1, 2)).requires_grad_(False)
    leaf = images(1, 1, 4, 4).requires_grad_()
    result = fastmalade.langevin_chain(leaf, model, [0.3], [0.1], seed=1, backend="triton", precision=precision)
    assert asked == [precision]
    torch.autograd.grad(result.sum(), leaf)
    assert set(asked) == {precision}
    assert len(asked) > 1
    config = fastmalade.ChainConfig(n_steps=1, step_size=0.3, noise_scale=0.1, clamp="none")
    purifier = fastmalade.Purifier(model, config, backend="triton", precision=precision)
    assert torch.equal(purifier(leaf.detach(), seed=1), result.detach())
    assert set(asked) == {precision}


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x = reference64.random_weights(1, 1, 2), images(3, 1, 4, 8)
    noise = images(3, 1, 4, 8)[None]
    settings = (weights, [0.3], [0.2])
    drawn_states = run(x, *settings, trajectory=True)
    given, gradient = run(x, *settings, noise=noise), vjp(x, x, *settings)
    monkeypatch.setattr(backend, "MAX_WORKING_BYTES", 4_000)  # two images, then one
    assert torch.equal(run(x, *settings, trajectory=True), drawn_states)
    assert torch.equal(run(x, *settings, noise=noise), given)
    monkeypatch.setattr(backend, "MAX_WORKING_BYTES", 1)  # one at least
    assert torch.equal(vjp(x, x, *settings), gradient)


def test_the_closed_interval_of_the_clamp() -> None:
    # Without step and noise x stays: elements on a bound pass the gradient, those outside do not.
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5, 0.2, 0.3, 0.4]).repeat(2).reshape(1, 1, 4, 4)
    weights = reference64.random_weights(1, 2, 3)
    gradient = vjp(torch.ones_like(x), x, weights, [0.0], [0.0], low=0.0, high=1.0)
    assert torch.equal(gradient, ((x >= 0) & (x <= 1)).float())


def test_nan_stays_and_zero_noise_reads_none() -> None:
    weights, x = reference64.random_weights(1, 1, 2), images(2, 1, 4, 4)
    unread = torch.full((1, *x.shape), math.nan)
    assert torch.equal(run(x, weights, [0.3], [0.0]), run(x, weights, [0.3], [0.0], noise=unread))
    x[1, 0, 2, 2] = math.nan
    result = run(x, weights, [0.3], [0.1], low=0.0, high=1.0)
    assert torch.isnan(result[1, 0, 2, 2])
    assert bool(torch.isfinite(result[0]).all())


def test_layouts_empty_batches_and_no_steps() -> None:
    weights, x = reference64.random_weights(2, 1, 1), images(2, 2, 4, 4)
    expected = run(x, weights, [0.3], [0.1])
    result = run(x.to(memory_format=torch.channels_last), weights, [0.3], [0.1])
    assert torch.equal(result, expected)
    assert result.is_contiguous()
    assert run(x[:0], weights, [0.3], [0.1]).shape == (0, 2, 4, 4)
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
        ({"d": [0.1, 0.1]}, r"steps: expected N of each, got \[1, 2, 1, 1\]"),
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
