"""The native vector-Jacobian products against float64 autograd, and the bitwise promises."""

from __future__ import annotations

import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 4, 4), (2, 8, 12), (3, 20, 36), (1, 4, 40), (2, 44, 4), (3, 64, 64)]
HIDDEN = [(10, 25), (1, 1), (7, 17)]
FORMS = ["throughput", "quad", "latency"]
INFINITY = float("inf")


def normals(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(batch: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1))


def schedule(n_steps: int) -> tuple[list[float], list[float]]:
    return [0.3 / (1 + 0.1 * t) for t in range(n_steps)], [0.1 if t % 5 else 0.0 for t in range(n_steps)]


def run(cotangent: torch.Tensor, x: torch.Tensor, weights, n_steps: int, *, low=-INFINITY, high=INFINITY, **options):
    noise = NoiseSource(
        options.pop("seed", 77), options.pop("sample_ids", torch.arange(len(x))), options.pop("noise", None)
    )
    steps = Steps(*schedule(n_steps), [low] * n_steps, [high] * n_steps)
    return cpu.chain_gradient(cotangent, x, weights, steps, noise, **options)


def by_autograd(cotangent, x, weights, n_steps, noise, low, high, dtype) -> torch.Tensor:
    leaf = x.to(dtype).requires_grad_(True)
    final = reference64.chain(leaf, weights, *schedule(n_steps), noise.to(dtype), low, high)[-1]
    return torch.autograd.grad(final, leaf, cotangent.to(dtype))[0]


@pytest.mark.parametrize("bounds", [(-INFINITY, INFINITY), (0.0, 1.0)], ids=["free", "clamped"])
@pytest.mark.parametrize("n_steps", [1, 10, 50])
def test_chain_gradient_within_the_tolerance_rule(isa: str, n_steps: int, bounds) -> None:
    weights, shape, ids = reference64.random_weights(1, 10, 25), (1, 28, 28), [3, 10**12, -4, 0, 8]
    x, cotangent = images(5, shape), normals(2, 5, *shape)
    noise = torch.stack(
        [torch.from_numpy(reference64.normals(77, ids, t, 784)).reshape(5, *shape) for t in range(n_steps)]
    )
    exact, single = (
        by_autograd(cotangent, x, weights, n_steps, noise, *bounds, dtype) for dtype in (torch.float64, torch.float32)
    )
    low, high = bounds
    for form in FORMS:
        found = run(cotangent, x, weights, n_steps, low=low, high=high, sample_ids=torch.tensor(ids), form=form)
        reference64.assert_within_rule(found, single, exact, form)
    if low == 0.0:
        free = run(cotangent, x, weights, n_steps, sample_ids=torch.tensor(ids))
        assert not torch.allclose(found, free, atol=0.1)  # the clamp has stopped some of it


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(isa: str, shape, hidden) -> None:
    weights = reference64.random_weights(shape[0], *hidden)
    x, cotangent, noise = images(3, shape), normals(2, 3, *shape), normals(3, 2, 3, *shape)
    exact, single = (
        by_autograd(cotangent, x, weights, 2, noise, -INFINITY, INFINITY, dtype)
        for dtype in (torch.float64, torch.float32)
    )
    for form in FORMS:
        reference64.assert_within_rule(run(cotangent, x, weights, 2, noise=noise, form=form), single, exact, form)


@pytest.mark.parametrize("quarter", [7, 8, 9, 11, 13, 15, 16, 17, 18, 24, 33])
@pytest.mark.parametrize("height", [16, 44])
def test_rows_of_several_tiles(isa: str, height: int, quarter: int) -> None:
    """Rows of the quarter-size grid around the length of a vector and of a transform's tile, there and back."""
    shape = (1, height, 4 * quarter)
    weights = reference64.random_weights(1, 16, 40)
    x, cotangent = images(2, shape), normals(2, 2, *shape)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_(True)
        gradients.append(torch.autograd.grad(reference64.forward(leaf, weights), leaf, cotangent.to(dtype))[0])
    results = [cpu.autoencoder_vjp(cotangent, x, weights, form=form) for form in FORMS]
    for result in results:
        reference64.assert_within_rule(result, *gradients)
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 12, 4), (1, 4, 16)])
@pytest.mark.parametrize("layer", [0, 2, 4, 6, 8])
def test_every_tap_goes_back_from_every_border(isa: str, shape, layer: int) -> None:
    # One tap of a layer at a time: one that is dropped, or reads past a border, shows by itself.
    x, cotangent = images(2, shape) + 0.5, normals(4, 2, *shape)
    base = reference64.random_weights(shape[0], 2, 3, seed=5)
    side = base[layer].shape[-1]
    for ky in range(side):
        for kx in range(side):
            weights = [w.clone() for w in base]
            weights[layer].zero_()
            weights[layer][..., ky, kx] = 4 * base[layer][..., ky, kx]
            gradients = []
            for dtype in (torch.float32, torch.float64):
                leaf = x.to(dtype).requires_grad_(True)
                out = reference64.forward(leaf, weights)
                gradients.append(torch.autograd.grad(out, leaf, cotangent.to(dtype))[0])
            for form in FORMS:
                found = cpu.autoencoder_vjp(cotangent, x, weights, form=form)
                reference64.assert_within_rule(found, *gradients)


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruction_error_gradient(isa: str, shape) -> None:
    weights = reference64.random_weights(shape[0], 10, 25)
    x = images(9, shape)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_(True)
        error = (leaf - reference64.forward(leaf, weights)).square().sum()
        gradients.append(torch.autograd.grad(error, leaf)[0])
    for form in FORMS:
        reference64.assert_within_rule(cpu.reconstruction_error_gradient(x, weights, form=form), *gradients, form)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 36)])
def test_the_same_bits_for_every_batch_form_and_thread_count(isa: str, shape) -> None:
    weights = reference64.random_weights(shape[0], 10, 25)
    x, cotangent, ids = images(33, shape), normals(2, 33, *shape), torch.arange(100, 133)
    options = {"low": 0.0, "high": 1.0}
    whole = run(cotangent, x, weights, 3, sample_ids=ids, **options)
    for form in FORMS:
        assert torch.equal(run(cotangent, x, weights, 3, sample_ids=ids, form=form, **options), whole)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch in (1, 2, 7, 15, 16, 17):
            part = run(cotangent[-batch:], x[-batch:], weights, 3, sample_ids=ids[-batch:], **options)
            assert torch.equal(part, whole[-batch:]), f"batch {batch}, {threads} threads"


@pytest.mark.parametrize("n_steps", [1, 2, 7, 10])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_under_every_budget(isa: str, form: str, n_steps: int) -> None:
    torch.set_num_threads(1)
    weights = reference64.random_weights(1, 10, 25)
    x, cotangent = images(9, (1, 28, 28)), normals(2, 9, 1, 28, 28)
    full = cpu.gradient_plan(x.shape, (10, 25), n_steps)
    assert full.forward_steps == n_steps
    expected = run(cotangent, x, weights, n_steps, low=0.0, high=1.0, form=form)
    seen = set()
    for part in range(9):
        budget = full.least_bytes + (full.n_bytes - full.least_bytes) * part // 8
        plan = cpu.gradient_plan(x.shape, (10, 25), n_steps, budget)
        assert plan.n_bytes <= budget
        seen.add(plan.forward_steps)
        found = run(cotangent, x, weights, n_steps, low=0.0, high=1.0, form=form, max_bytes=budget)
        assert torch.equal(found, expected), str(plan)
    assert n_steps == 1 or len(seen) > 1
    with pytest.raises(ValueError, match=r"max_bytes: expected at least \d+.*got"):
        run(cotangent, x, weights, n_steps, max_bytes=full.least_bytes - 1)


def test_inputs_are_not_written_to_and_outputs_are_whole(isa: str) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x, cotangent = images(9, (1, 28, 28)), normals(2, 9, 1, 28, 28)
    before = x.clone(), cotangent.clone()
    for found in (
        run(cotangent, x, weights, 3),
        cpu.autoencoder_vjp(cotangent, x, weights),
        cpu.reconstruction_error_gradient(x, weights),
    ):
        assert found.shape == x.shape
        assert torch.isfinite(found).all()
    assert torch.equal(x, before[0])
    assert torch.equal(cotangent, before[1])
    assert run(cotangent[:0], x[:0], weights, 3).shape == (0, 1, 28, 28)
    assert torch.equal(run(cotangent, x, weights, 0), cotangent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": [0, 0, 0]}, "a way back over all steps"),
        ({"actions": [0, 0, 0, 3, 0, 2]}, "as many steps as there are records"),
        ({"actions": [0, 0, 0, 3, 1, 1]}, "steps from the state's own on"),
        ({"actions": [0, 0, 0, 2, 0, 3]}, "steps from the state's own on"),
        ({"actions": [0, 1, 1]}, "a checkpoint of that step"),
        ({"actions": [0, 0, 0, 1, 0, 2]}, "a checkpoint number"),
        ({"actions": [0, 0, 0, 3, 0, 1, 4, 0, 1]}, "the recorded steps"),
        ({"actions": [9, 0, 0]}, "a kind from 0 to 4"),
        ({"actions": [0, 0]}, "three numbers each"),
        ({"records": -1}, "records: expected at least 0"),
    ],
)
def test_the_binding_checks_its_arguments(native, change, message) -> None:
    weights = reference64.random_weights(1, 2, 3)
    x, out = images(1, (1, 8, 8)), torch.empty(1, 1, 8, 8)
    arguments = {
        "model": native.load().Model(1, [1, 8, 8, 2, 3], [w.data_ptr() for w in weights], x.data_ptr()),
        "isa": "baseline", "form": "auto",
        "steps": native.native_steps(Steps((0.1, 0.1), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0))),
        "seed": 0, "sample_ids": 0, "noise": 0,
        "cotangent": x.data_ptr(), "gradient": out.data_ptr(), "weight_gradient": 0,
        "checkpoints": 1, "records": 1, "threads": 1,
        "actions": [0, 0, 0, 2, 0, 1, 3, 1, 1, 4, 1, 1, 0, 0, 0, 3, 0, 1, 4, 0, 1],
    }  # fmt: skip
    native.load().chain_gradient(**arguments)
    with pytest.raises(ValueError, match=message):
        native.load().chain_gradient(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_sizes": [0.1]}, "noise_scales: expected 1 values"),
        ({"lows": [2.0, 2.0]}, "clamp bounds: expected low <= high"),
    ],
)
def test_the_binding_checks_steps(native, change, message) -> None:
    steps = {"step_sizes": [0.1, 0.1], "noise_scales": [0.0, 0.0], "lows": [0.0, 0.0], "highs": [1.0, 1.0]}
    native.load().Steps(**steps)
    with pytest.raises(ValueError, match=message):
        native.load().Steps(**{**steps, **change})


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 36), (1, 4, 4)])
@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_the_same_bits_from_kept_activations(isa: str, shape, form: str) -> None:
    weights = reference64.random_weights(shape[0], 7, 9)
    for batch in (0, 1, 9, 17):
        x, cotangent, ids = images(batch, shape), normals(2, batch, *shape), torch.arange(5, 5 + batch)
        chain = (Steps(*schedule(3), [0.0] * 3, [1.0] * 3), NoiseSource(7, ids))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result, kept = cpu.recorded_chain(x, weights, *chain, form=form)
            assert torch.equal(result, cpu.langevin_chain(x, weights, *chain))
            expected = cpu.chain_gradient(cotangent, x, weights, *chain)
            for _ in range(2):
                assert torch.equal(kept.gradient(cotangent), expected)
    with pytest.raises(ValueError, match="cotangent: expected"):
        kept.gradient(cotangent[1:])
