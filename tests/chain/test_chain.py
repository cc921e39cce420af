"""langevin_chain as callers use it: dispatch, argument checks, seeds, ids, trajectories, user modules."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import reference64
import torch

import fastmalade
from fastmalade import Autoencoder, BackendUnavailableError, langevin_chain, langevin_trajectory

A, D = [0.5, 0.4, 0.3], [0.2, 0.1, 0.1]


class Overridden(Autoencoder):
    def forward(self, x):
        return super().forward(x) * 0.5


def test_user_module_gives_what_the_same_autoencoder_gives(make_autoencoder, make_images):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(5, 1, 12, 8).requires_grad_()
    native = langevin_chain(x, model, A, D, seed=3, clamp=(0.0, 1.0), backend="torch")
    other = langevin_chain(x, lambda v: model(v), A, D, seed=3, clamp=(0.0, 1.0))
    torch.testing.assert_close(native, other, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (native, other)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_subclass_with_its_own_forward_keeps_it(make_images):
    model = Overridden(1, (3, 5), generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    x = make_images(2, 1, 8, 8)
    result = langevin_chain(x, model, [1.0], [0.0])
    torch.testing.assert_close(result, model(x), rtol=0, atol=1e-6)


def test_cpu_backend_says_what_it_cannot_do(make_images):
    with pytest.raises(BackendUnavailableError, match=r"'cpu'.*expected dtype torch\.float32, got torch\.float64"):
        langevin_chain(make_images(1, 1, 4, 4).double(), torch.tanh, A, D, backend="cpu")


def test_reduced_precision_is_refused_where_nothing_computes_it(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(1, (2, 3)), make_images(1, 1, 4, 4)
    message = f"precision: expected fp32 on the backend {backend}, got 'tf32x3'"
    for chain in (fastmalade.langevin_chain, fastmalade.langevin_trajectory):
        with pytest.raises(ValueError, match=message):
            chain(x, model, [0.1], [0.1], backend=backend, precision="tf32x3")
        with pytest.raises(ValueError, match="precision: expected one of fp32, tf32x3, tf32, got 'bf16'"):
            chain(x, model, [0.1], [0.1], backend=backend, precision="bf16")
    purifier = fastmalade.Purifier(model, fastmalade.ChainConfig(n_steps=1), backend=backend, precision="tf32x3")
    with pytest.raises(ValueError, match=message):
        purifier.purify(x)
    with pytest.raises(ValueError, match="precision: expected one of fp32, tf32x3, tf32, got 'half'"):
        fastmalade.Purifier(model, fastmalade.ChainConfig(n_steps=1), precision="half")
    with pytest.raises(ValueError, match="precision: expected one of"):
        fastmalade.Purifier.from_pretrained("malade-mnist", precision="half")
    plain = fastmalade.langevin_chain(x, model, [0.1], [0.1], seed=1, backend=backend)
    assert torch.equal(
        fastmalade.langevin_chain(x, model, [0.1], [0.1], seed=1, precision="fp32", backend=backend), plain
    )


def test_unknown_backend(make_autoencoder, make_images):
    with pytest.raises(ValueError, match="tpu"):
        langevin_chain(make_images(1, 1, 4, 4), make_autoencoder(), A, D, backend="tpu")


def test_environment_chooses_the_backend(make_autoencoder, make_images, monkeypatch):
    monkeypatch.setenv("FASTMALADE_BACKEND", "tpu")
    with pytest.raises(ValueError, match="tpu"):
        langevin_chain(make_images(1, 1, 4, 4), make_autoencoder(), A, D)
    langevin_chain(make_images(1, 1, 4, 4), make_autoencoder(), A, D, backend="torch")


def test_float64_runs_in_torch(make_autoencoder, make_images):
    model = make_autoencoder(1, (3, 5), dtype=torch.float64).requires_grad_(False)
    x = make_images(2, 1, 8, 8, dtype=torch.float64)
    noise = make_images(3, 2, 1, 8, 8, dtype=torch.float64, seed=5)
    expected = reference64.chain(x, model.weights(), A, D, noise)[-1]
    np.testing.assert_allclose(langevin_chain(x, model, A, D, noise=noise), expected, atol=1e-12)


def test_seeds_and_the_global_generator(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(3, 1, 8, 8)

    def run(seed=None):
        return langevin_chain(x, model, A, D, seed=seed, backend=backend)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = run(), run()
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert not torch.equal(run(), first)
    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(5 + 2**32))
    assert not torch.equal(run(5), run(6))


def test_ids_make_shards_equal_the_whole(make_autoencoder, make_images, backend):
    model = make_autoencoder().requires_grad_(False)
    x = make_images(33, 1, 8, 8)
    ids = torch.arange(33) * 2**33
    whole = langevin_chain(x, model, A, D, seed=5, sample_ids=ids, backend=backend)
    parts = [
        langevin_chain(x[s], model, A, D, seed=5, sample_ids=ids[s], backend=backend)
        for s in (slice(0, 1), slice(1, 16), slice(16, 33))
    ]
    if backend == "torch":
        # Convolutions of torch may round differently at another batch size; the noise may not differ.
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    else:
        assert torch.equal(torch.cat(parts), whole)


def test_equal_ids_get_equal_noise(make_autoencoder, make_images, backend):
    x = make_images(1, 1, 8, 8).expand(3, 1, 8, 8)
    y = langevin_chain(x, make_autoencoder(), A, D, seed=1, sample_ids=[4, 4, 5], backend=backend)
    torch.testing.assert_close(y[0], y[1], rtol=0, atol=1e-6)
    assert float((y[0] - y[2]).detach().abs().max()) > 0.01


def test_explicit_noise_is_what_the_seed_draws(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(3, 1, 8, 8)
    seed, ids = 2**64 - 8, [0, 2**63 + 1, 2**32]
    noise = torch.stack([fastmalade.standard_normal(seed, ids, t, (1, 8, 8), backend=backend) for t in range(3)])
    explicit = langevin_chain(x, model, A, D, noise=noise, backend=backend)
    assert torch.equal(explicit, langevin_chain(x, model, A, D, seed=seed, sample_ids=ids, backend=backend))


def test_trajectory(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(3, 1, 8, 8)
    options = {"seed": 4, "clamp": (0.0, 1.0), "backend": backend}
    states = langevin_trajectory(x.requires_grad_(), model, A, D, **options)
    assert states.shape == (4, 3, 1, 8, 8)
    assert not states.requires_grad
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], langevin_chain(x, model, A, D, **options))
    assert torch.equal(states[2], langevin_chain(x, model, A[:2], D[:2], **options))
    assert langevin_trajectory(x, model, [], [], backend=backend).shape == (1, 3, 1, 8, 8)
    assert langevin_trajectory(x[:0], model, A, D, backend=backend).shape == (4, 0, 1, 8, 8)
    other = langevin_trajectory(x, lambda v: model(v), A, D, seed=4, clamp=(0.0, 1.0))
    assert not other.requires_grad
    torch.testing.assert_close(other, states, rtol=0, atol=1e-5)


def test_clamp_after_every_step_or_the_last(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(3, 1, 8, 8)
    options = {"seed": 4, "clamp": (0.4, 0.6), "backend": backend}
    every = langevin_trajectory(x, model, A, D, **options)
    final = langevin_trajectory(x, model, A, D, clamp_steps="final", **options)
    assert bool(((every[1:] >= 0.4) & (every[1:] <= 0.6)).all())
    assert not bool(((final[2] >= 0.4) & (final[2] <= 0.6)).all())
    assert bool(((final[3] >= 0.4) & (final[3] <= 0.6)).all())


def test_nan_stays_with_its_image(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(3, 1, 8, 8)
    x[1, 0, 2, 2] = math.nan
    y = langevin_chain(x, model, A, D, seed=4, clamp=(0.0, 1.0), backend=backend)
    assert bool(torch.isnan(y[1]).any())
    assert bool(torch.isfinite(y[[0, 2]]).all())


def test_input_is_not_written_to(make_autoencoder, make_images, backend):
    model, x = make_autoencoder(), make_images(3, 1, 8, 8)
    before, weights_before = x.clone(), copy.deepcopy(model.state_dict())
    langevin_chain(x, model, A, D, seed=4, clamp=(0.4, 0.6), backend=backend)
    assert torch.equal(x, before)
    assert all(torch.equal(v, weights_before[k]) for k, v in model.state_dict().items())


def test_empty_batch_of_a_module_that_cannot_take_one():
    def refuses(x):
        raise AssertionError("called")

    assert langevin_chain(torch.zeros(0, 1, 3, 3), refuses, A, D).shape == (0, 1, 3, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((1, 1, 8, 8))}, TypeError, "x: expected a torch tensor, got ndarray"),
        (
            {"x": torch.zeros(1, 1, 8, 8, dtype=torch.int64)},
            TypeError,
            "expected a floating dtype, got torch.int64",
        ),
        ({"x": torch.zeros(8, 8)}, ValueError, r"expected shape \(B, C, H, W\), got \(8, 8\)"),
        ({"x": torch.zeros(1, 1, 6, 8)}, ValueError, r"multiples of 4, got \(1, 1, 6, 8\)"),
        ({"x": torch.zeros(1, 2, 8, 8)}, ValueError, r"got \(1, 2, 8, 8\)"),
        ({"x": torch.zeros(1, 1, 8, 8, dtype=torch.float64)}, TypeError, "float32 on cpu, got torch.float64"),
        ({"step_sizes": [0.1]}, ValueError, "as many step sizes as noise scales, got 1 and 2"),
        ({"step_sizes": [0.1, math.nan]}, ValueError, "step_sizes: expected finite values"),
        ({"step_sizes": 0.1}, TypeError, "step_sizes: expected a sequence of floats, got float"),
        ({"noise_scales": [0.1, -0.1]}, ValueError, "noise_scales: expected values >= 0, got -0.1"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"sample_ids": [0]}, ValueError, r"sample_ids: expected shape \(2,\), got \(1,\)"),
        (
            {"noise": torch.zeros(2, 2, 1, 8, 4)},
            ValueError,
            r"noise: expected shape \(N, B, C, H, W\) = \(2, 2, 1, 8, 8\)",
        ),
        (
            {"noise": torch.zeros(2, 2, 1, 8, 8).double()},
            TypeError,
            "noise: expected a tensor of torch.float32",
        ),
        ({"noise": torch.zeros(2, 2, 1, 8, 8), "seed": 1}, ValueError, "either noise or seed"),
        ({"noise": torch.zeros(2, 2, 1, 8, 8), "sample_ids": [0, 1]}, ValueError, "either noise or seed"),
        ({"clamp": (1.0, 0.0)}, ValueError, r"clamp: expected \(low, high\)"),
        ({"clamp_steps": "first"}, ValueError, "clamp_steps: expected 'every_step' or 'final'"),
        ({"autoencoder": 3}, TypeError, r"autoencoder: expected a callable r\(x\), got int"),
        ({"autoencoder": lambda v: v[:, :, :4]}, ValueError, "autoencoder: expected an output of the shape"),
    ],
)
def test_arguments_are_checked(make_autoencoder, change, error, message):
    arguments = {
        "x": torch.zeros(2, 1, 8, 8),
        "autoencoder": make_autoencoder(),
        "step_sizes": [0.1, 0.1],
        "noise_scales": [0.1, 0.1],
        **change,
    }
    with pytest.raises(error, match=message):
        langevin_chain(**arguments)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_budget_is_checked_where_nothing_is_recorded_too(make_autoencoder, make_images, backend, frozen):
    model, x = make_autoencoder().requires_grad_(not frozen), make_images(2, 1, 8, 8)
    with pytest.raises(ValueError, match="max_bytes: expected at least 1, got 0"):
        langevin_chain(x, model, [0.1], [0.1], backend=backend, max_bytes=0)
    with pytest.raises(TypeError, match=r"max_bytes: expected an int or None, got float 2\.5"):
        langevin_chain(x, lambda v: v, [0.1], [0.1], backend=backend, max_bytes=2.5)


def test_schedules_may_be_tensors(make_autoencoder, make_images):
    model, x = make_autoencoder(), make_images(2, 1, 8, 8)
    expected = langevin_chain(x, model, [0.5, 0.25], [0.5, 0.0], seed=1)
    got = langevin_chain(x, model, torch.tensor([0.5, 0.25]), np.array([0.5, 0.0]), seed=1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_another_dtype_say_what_to_do(make_autoencoder, make_images, dtype):
    with pytest.raises(TypeError, match=r"got torch\..* on cpu; convert it with x.to\(torch.float32\).*autocast"):
        fastmalade.langevin_chain(make_images(1, 1, 8, 8).to(dtype), make_autoencoder(), [0.1], [0.0])


def test_a_layer_under_autocast_before_the_chain(make_autoencoder, make_images):
    model, x = make_autoencoder().requires_grad_(False), make_images(2, 1, 8, 8)
    layer = torch.nn.Conv2d(1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = layer(x)
        assert lowered.dtype == torch.bfloat16
        with pytest.raises(TypeError, match="autocast"):
            fastmalade.langevin_chain(lowered, model, [0.1], [0.0])
        assert fastmalade.langevin_chain(lowered.to(torch.float32), model, [0.1], [0.0]).dtype == torch.float32
