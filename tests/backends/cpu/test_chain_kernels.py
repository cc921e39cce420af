"""The native autoencoder and Langevin chain against float64 torch, and the bitwise promises."""

from __future__ import annotations

import pytest
import reference64
import torch

from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.values import NoiseSource, Steps

# By the transforms they lead to with 10 and 25 channels (kernels/cpu/isa/spectral_layout.h): one tile, one larger tile,
# none, tiles cut off at the right and below, many tiles.
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 4, 4), (2, 8, 12), (3, 20, 36), (1, 4, 40), (2, 44, 4)]
SHAPES += [(1, 44, 36), (3, 64, 64)]
HIDDEN = [(10, 25), (1, 1), (7, 17)]
BATCHES = [1, 2, 7, 15, 16, 17, 33]
FORMS = ["throughput", "quad", "latency"]
INFINITY = float("inf")


def images(batch: int, shape: tuple[int, int, int], seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))


def run(x: torch.Tensor, weights, n_steps: int = 3, *, low=-INFINITY, high=INFINITY, noise_scale=0.1, **options):
    noise = NoiseSource(
        options.pop("seed", 77), options.pop("sample_ids", torch.arange(x.shape[0])), options.pop("noise", None)
    )
    step_sizes = [0.3 / (t + 1) for t in range(n_steps)]
    steps = Steps(step_sizes, [noise_scale] * n_steps, [low] * n_steps, [high] * n_steps)
    return cpu.langevin_chain(x, weights, steps, noise, **options)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_autoencoder_within_the_tolerance_rule(isa: str, shape, hidden) -> None:
    weights = reference64.random_weights(shape[0], *hidden)
    x = images(5, shape)
    exact, single = reference64.forward(x.double(), weights), reference64.forward(x, weights)
    assert float(exact.abs().max()) < 1.0
    for form in FORMS:
        reference64.assert_within_rule(cpu.autoencoder_forward(x, weights, form=form), single, exact, form)


@pytest.mark.parametrize("batch", BATCHES)
def test_autoencoder_every_batch_size(isa: str, batch: int) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x = images(batch, (1, 28, 28))
    result = cpu.autoencoder_forward(x, weights)
    reference64.assert_within_rule(result, reference64.forward(x, weights), reference64.forward(x.double(), weights))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 12, 4), (1, 4, 16)])
def test_every_tap_reaches_every_border(isa: str, shape) -> None:
    # One weight of a layer at a time against float64: a tap that is dropped or reads past a border shows by
    # itself.
    channels = shape[0]
    x = images(2, shape) + 0.5
    base = reference64.random_weights(channels, 2, 3, seed=5)
    for layer in (0, 2, 4, 8):
        taps = base[layer].shape[-1]
        for ky in range(taps):
            for kx in range(taps):
                weights = [w.clone() for w in base]
                kept = weights[layer][..., ky, kx].clone()
                weights[layer].zero_()
                weights[layer][..., ky, kx] = 4 * kept
                exact, single = reference64.forward(x.double(), weights), reference64.forward(x, weights)
                for form in FORMS:
                    reference64.assert_within_rule(cpu.autoencoder_forward(x, weights, form=form), single, exact)


@pytest.mark.parametrize("layer", [2, 4])
def test_every_tap_through_a_transform(isa: str, layer: int) -> None:
    # A tap that a transform drops, or wraps around from the other side, is far outside the rule.
    x = images(1, (1, 28, 28)) + 0.5
    base = reference64.random_weights(1, 10, 25, seed=6)
    taps = base[layer].shape[-1]
    for ky in range(taps):
        for kx in range(taps):
            weights = [w.clone() for w in base]
            weights[layer].zero_()
            weights[layer][..., ky, kx] = 4 * base[layer][..., ky, kx]
            exact, single = reference64.forward(x.double(), weights), reference64.forward(x, weights)
            for form in FORMS:
                reference64.assert_within_rule(cpu.autoencoder_forward(x, weights, form=form), single, exact)


def test_a_large_image(isa: str) -> None:
    weights = reference64.random_weights(3, 10, 25)
    x = images(1, (3, 224, 224))
    exact, single = reference64.forward(x.double(), weights), reference64.forward(x, weights)
    for form in FORMS:
        reference64.assert_within_rule(cpu.autoencoder_forward(x, weights, form=form), single, exact, form)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 36)])
def test_chain_within_the_tolerance_rule(isa: str, shape) -> None:
    weights = reference64.random_weights(shape[0], 10, 25)
    x, n_steps = images(5, shape), 10
    elements = shape[0] * shape[1] * shape[2]
    ids = [3, 10**12, -4, 0, 8]
    noise = torch.stack(
        [torch.from_numpy(reference64.normals(77, ids, t, elements)).reshape(5, *shape) for t in range(n_steps)]
    )
    a, d = [0.3 / (t + 1) for t in range(n_steps)], [0.1] * n_steps
    exact = reference64.chain(x.double(), weights, a, d, noise, 0.0, 1.0)
    single = reference64.chain(x, weights, a, d, noise, 0.0, 1.0)
    options = {"low": 0.0, "high": 1.0, "sample_ids": torch.tensor(ids)}
    for form in FORMS:
        states = run(x, weights, n_steps, form=form, trajectory=True, **options)
        assert states.shape == exact.shape
        assert torch.equal(states[0], x)
        for t in range(n_steps + 1):
            reference64.assert_within_rule(states[t], single[t], exact[t], f"{form}, step {t}:")
        assert torch.equal(run(x, weights, n_steps, form=form, **options), states[-1])


@pytest.mark.parametrize(
    ("shape", "hidden"),
    [
        ((1, 28, 28), (10, 25)),
        ((1, 8, 80), (10, 6)),  # several tiles of columns in a row, the last one narrow
        ((2, 12, 44), (9, 5)),
        ((3, 16, 32), (42, 6)),  # several blocks of channels
        ((1, 4, 36), (1, 2)),
    ],
)
def test_columns_in_the_lanes_of_conv1(isa: str, shape, hidden) -> None:
    """The latency form computes with what lies beside a row, and must select none of it, not even a zero's sign."""
    weights = reference64.random_weights(shape[0], *hidden)
    weights[1].fill_(-0.0)
    x = images(3, shape)
    x[0] = 0.0
    x[1] = x[1].where(x[1] > 0.2, torch.inf)
    first, *others = [cpu.autoencoder_forward(x, weights, form=form) for form in FORMS]
    for other in others:
        assert torch.equal(first[[0, 2]].view(torch.int32), other[[0, 2]].view(torch.int32))
        assert torch.equal(first[1].nan_to_num(9.0), other[1].nan_to_num(9.0))  # NaN has many bit patterns


@pytest.mark.parametrize("shape", SHAPES)
def test_forms_give_the_same_bits(isa: str, shape) -> None:
    for hidden in [*HIDDEN, (16, 40)]:
        weights = reference64.random_weights(shape[0], *hidden)
        x = images(7, shape)
        results = [run(x, weights, form=form) for form in ("throughput", "quad", "latency", "auto")]
        assert torch.isfinite(results[0]).all()
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("quarter", [7, 8, 9, 11, 13, 15, 16, 17, 18, 24, 33])
@pytest.mark.parametrize("height", [16, 44])
def test_rows_of_several_tiles(isa: str, height: int, quarter: int) -> None:
    """Rows of the quarter-size grid around the length of a vector and of a transform's tile, the row below at stake."""
    shape = (1, height, 4 * quarter)
    weights = reference64.random_weights(1, 16, 40)
    x = images(2, shape)
    exact, single = reference64.forward(x.double(), weights), reference64.forward(x, weights)
    results = [cpu.autoencoder_forward(x, weights, form=form) for form in FORMS]
    for result in results:
        reference64.assert_within_rule(result, single, exact)
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_bits_do_not_depend_on_batch_position_or_threads(isa: str, form: str) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x = images(72, (1, 12, 28))
    ids = torch.arange(72) * 10**11 - 5
    torch.set_num_threads(1)
    whole = run(x, weights, sample_ids=ids, form=form)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch in (1, 2, 7, 15, 16, 17, 33, 64):
            for first in {0, (64 - batch) // 2 + threads}:
                part = slice(first, first + batch)
                assert torch.equal(run(x[part], weights, sample_ids=ids[part], form=form), whole[part])
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(x[order], weights, sample_ids=ids[order], form=form), whole[order])


@pytest.mark.parametrize("form", FORMS)
def test_given_noise(isa: str, form: str) -> None:
    weights = reference64.random_weights(3, 7, 17)
    x = images(5, (3, 8, 12))
    drawn = torch.stack([cpu.standard_normal(77, torch.arange(5), t, 288).reshape(5, 3, 8, 12) for t in range(3)])
    assert torch.equal(run(x, weights, noise=drawn, form=form), run(x, weights, form=form))
    assert torch.equal(run(x, weights, noise=drawn, seed=1, form=form), run(x, weights, form=form))
    assert not torch.equal(run(x, weights, noise=2 * drawn, form=form), run(x, weights, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_zero_noise_zero_steps_empty_batch(isa: str, form: str) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x = images(3, (1, 12, 8))
    assert torch.equal(run(x, weights, 0, form=form), x)
    assert torch.equal(run(x, weights, 0, form=form, trajectory=True), x[None])
    still = [run(x, weights, noise_scale=0.0, seed=seed, form=form) for seed in (1, 2)]
    assert torch.equal(still[0], still[1])
    # With no noise a NaN in the noise array is never read.
    unread = torch.full((3, *x.shape), float("nan"))
    assert torch.equal(run(x, weights, noise_scale=0.0, noise=unread, form=form), still[0])
    assert run(x[:0], weights, form=form).shape == (0, 1, 12, 8)
    assert run(x[:0], weights, form=form, trajectory=True).shape == (4, 0, 1, 12, 8)


@pytest.mark.parametrize("form", FORMS)
def test_clamp_and_nan(isa: str, form: str) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x = images(3, (1, 16, 16))
    free = run(x, weights, 1, noise_scale=1.0, form=form)
    bounded = run(x, weights, 1, noise_scale=1.0, low=0.25, high=0.75, form=form)
    assert torch.equal(bounded, free.clamp(0.25, 0.75))
    assert (free != bounded).any()
    x[1, 0, 3, 3] = float("nan")
    spoiled = run(x, weights, 1, low=0.0, high=1.0, form=form)
    assert torch.isnan(spoiled[1, 0, 3, 3])
    assert torch.isfinite(spoiled[0]).all()
    assert torch.isfinite(spoiled[2]).all()


def test_strided_inputs_are_copied_not_changed(native) -> None:
    weights = reference64.random_weights(2, 7, 17)
    x = images(4, (2, 8, 12))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    before = channels_last.clone()
    assert torch.equal(run(channels_last, weights), run(x, weights))
    assert torch.equal(channels_last, before)
    assert torch.equal(run(x.flip(0)[::2], weights), run(x.flip(0)[::2].contiguous(), weights))
    transposed = [w.transpose(0, 1).contiguous().transpose(0, 1) if w.dim() > 1 else w for w in weights]
    assert torch.equal(run(x, transposed), run(x, weights))
