"""The CUDA kernels, run on the CPU by the emulation, against float64 torch; and the bitwise promises."""

from __future__ import annotations

import math

import emulated
import pytest
import reference64
import torch
from emulated import DIGIT, INFINITY, drawn, images, settings

pytestmark = pytest.mark.slow

# form, images of a group, blocks of a cluster, shape, hidden channels
CASES = [
    ("digits", 8, 1, DIGIT, (10, 25)),
    ("digits", 4, 1, DIGIT, (10, 25)),
    ("general", 2, 1, DIGIT, (10, 25)),
    ("cluster", 1, 3, DIGIT, (10, 25)),
    ("general", 4, 1, (3, 16, 12), (7, 6)),
    ("general", 1, 1, (2, 4, 20), (1, 1)),
    ("general", 1, 1, (3, 32, 32), (10, 25)),
    ("cluster", 2, 2, (2, 12, 8), (3, 5)),
    ("cluster", 1, 8, (1, 4, 4), (6, 11)),
]
FORM_NAMES = [f"{form}-{images}x{cluster}-{'x'.join(map(str, shape))}" for form, images, cluster, shape, _ in CASES]


def chosen(emulation, form, group, cluster, shape, hidden, batch, **options) -> emulated.Choice:
    choice = emulation.choose((*shape, *hidden), batch, form=form, images=group, cluster=cluster, **options)
    assert (choice.name, choice.images, choice.cluster) == (form, group, cluster)
    return choice


@pytest.mark.parametrize(("form", "group", "cluster", "shape", "hidden"), CASES, ids=FORM_NAMES)
def test_reconstruction_within_the_tolerance_rule(emulation, form, group, cluster, shape, hidden) -> None:
    weights = reference64.random_weights(shape[0], *hidden)
    x = images(group + 1, shape)
    choice = chosen(emulation, form, group, cluster, shape, hidden, len(x))
    exact = reference64.forward(x.double(), weights)
    result = emulation.forward(choice, x, weights)
    reference64.assert_within_rule(result, reference64.forward(x, weights), exact)
    assert torch.equal(x, images(group + 1, shape))


@pytest.mark.parametrize(("form", "group", "cluster", "shape", "hidden"), CASES, ids=FORM_NAMES)
def test_chain_within_the_tolerance_rule(emulation, form, group, cluster, shape, hidden) -> None:
    weights = reference64.random_weights(shape[0], *hidden)
    x, steps = images(group + 1, shape), settings(3, low=0.1, high=0.9)
    choice = chosen(emulation, form, group, cluster, shape, hidden, len(x))
    noise = drawn(77, len(x), 3, shape)
    exact = reference64.chain(x.double(), weights, steps[0].tolist(), steps[1].tolist(), noise, 0.1, 0.9)
    single = reference64.chain(x, weights, steps[0].tolist(), steps[1].tolist(), noise, 0.1, 0.9)
    result = emulation.chain(choice, x, weights, steps, trajectory=True)
    reference64.assert_within_rule(result, single, exact)
    assert torch.equal(emulation.chain(choice, x, weights, steps), result[-1])


@pytest.mark.parametrize(("form", "group", "cluster", "shape", "hidden"), CASES, ids=FORM_NAMES)
def test_gradient_within_the_tolerance_rule(emulation, form, group, cluster, shape, hidden) -> None:
    weights = reference64.random_weights(shape[0], *hidden)
    n_steps, batch = 2, group + 1
    steps = settings(n_steps, low=0.1, high=0.9)
    x, cotangent = images(batch, shape), torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3))
    noise = drawn(77, batch, n_steps, shape)
    choice = chosen(emulation, form, group, cluster, shape, hidden, batch)
    states = emulation.chain(choice, x, weights, steps, trajectory=True)

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        # From the float32 states, so that no element is clamped in one of the two and not in the other.
        g, by_noise = cotangent.to(dtype), []
        for t in reversed(range(n_steps)):
            state, z = states[t].to(dtype).requires_grad_(), noise[t].to(dtype).requires_grad_()
            free = state + steps[0, t].item() * (reference64.forward(state, weights) - state) + steps[1, t].item() * z
            g, gz = torch.autograd.grad(free.clamp(0.1, 0.9), (state, z), g)
            by_noise.insert(0, gz)
        return g, torch.stack(by_noise)

    exact, exact_noise = by_autograd(torch.float64)
    single, single_noise = by_autograd(torch.float32)
    choice = chosen(emulation, form, group, cluster, shape, hidden, batch, gradient=True)
    result, by_noise = emulation.gradient(choice, states, weights, steps, cotangent, noise_gradient=True)
    reference64.assert_within_rule(result, single, exact)
    reference64.assert_within_rule(by_noise, single_noise, exact_noise)
    assert 0.02 < float(((states[1:] == 0.1) | (states[1:] == 0.9)).float().mean()) < 0.9, "the clamp has to act"


# Every form; the size of a digit, which takes longest, only in the form that has no other.
@pytest.mark.parametrize(
    ("form", "group", "cluster", "shape", "hidden"),
    [case for case in CASES if case[0] == "digits" or case[3] != DIGIT],
)
def test_products_within_the_tolerance_rule(emulation, form, group, cluster, shape, hidden) -> None:
    weights, x = reference64.random_weights(shape[0], *hidden), images(group + 1, shape)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        at = x.to(dtype).requires_grad_()
        r = reference64.forward(at, weights)
        (product,) = torch.autograd.grad(r, at, cotangent.to(dtype), retain_graph=True)
        return product, torch.autograd.grad((at - r).square().sum(), at)[0]

    exact, single = by_autograd(torch.float64), by_autograd(torch.float32)
    choice = chosen(emulation, form, group, cluster, shape, hidden, len(x), gradient=True)
    # As backends/cuda/calls.py asks for it: one step of size 1 without noise or bounds.
    step = torch.tensor([[1.0], [0.0], [-INFINITY], [INFINITY]])
    product, _ = emulation.gradient(choice, x[None], weights, step, cotangent)
    reference64.assert_within_rule(product, single[0], exact[0])
    error = emulation.error_gradient(choice, x, weights)
    reference64.assert_within_rule(error, single[1], exact[1])
    # The same bits for an image alone.
    alone = chosen(emulation, form, group, cluster, shape, hidden, 1, gradient=True)
    assert torch.equal(emulation.error_gradient(alone, x[1:2].contiguous(), weights), error[1:2])


@pytest.mark.parametrize("gradient", [False, True], ids=["chain", "gradient"])
def test_every_form_gives_the_same_bits(emulation, gradient: bool) -> None:
    weights = reference64.random_weights(1, 10, 25)
    x, steps, ids = images(9, DIGIT), settings(2, low=0.05, high=0.9), torch.arange(9) * 3 - 4
    states = emulation.chain(chosen(emulation, "digits", 8, 1, DIGIT, (10, 25), 9), x, weights, steps, sample_ids=ids,
                             trajectory=True)  # fmt: skip
    results = []
    for form, group, cluster, shape, hidden in CASES[:4]:
        # One image alone, the last of the batch, and the whole batch.
        for part in (slice(0, 9), slice(8, 9)):
            choice = chosen(emulation, form, group, cluster, shape, hidden, 1, gradient=gradient)
            if gradient:
                result, _ = emulation.gradient(choice, states[:, part].contiguous(), weights, steps,
                                               x[part].contiguous(), sample_ids=ids[part].contiguous())  # fmt: skip
            else:
                result = emulation.chain(choice, x[part].contiguous(), weights, steps,
                                         sample_ids=ids[part].contiguous())  # fmt: skip
            results.append(result[-1])
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_general_forms_give_the_same_bits_with_and_without_resident_weights(emulation) -> None:
    weights, hidden, shape = reference64.random_weights(3, 7, 6), (7, 6), (3, 16, 12)
    x, steps = images(5, shape), settings(2)
    results = []
    for form, group, cluster in [("general", 1, 1), ("general", 4, 1), ("cluster", 1, 4), ("cluster", 3, 2)]:
        choice = chosen(emulation, form, group, cluster, shape, hidden, 5)
        tight = chosen(emulation, form, group, cluster, shape, hidden, 5,
                       device=(132, choice.shared_bytes - 1, 16))  # fmt: skip
        assert (choice.resident, tight.resident) == (1, 0)
        results += [emulation.chain(choice, x, weights, steps), emulation.chain(tight, x, weights, steps)]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize(("form", "cluster"), [("general", 1), ("cluster", 3)])
def test_chains_longer_than_a_launch(emulation, form: str, cluster: int) -> None:
    # More than twice kMostSteps, so that there are a first, an inner and a last launch.
    shape, hidden, n_steps = (1, 4, 4), (1, 2), 261
    weights, x = reference64.random_weights(1, *hidden), images(2, shape)
    steps = settings(n_steps, low=0.0, high=1.0)
    choice = chosen(emulation, form, 1, cluster, shape, hidden, 2)
    choice.threads = 16  # as many as the image has pixels: more take long to switch between, and find nothing to do
    states = emulation.chain(choice, x, weights, steps, trajectory=True)
    assert torch.equal(emulation.chain(choice, x, weights, steps), states[-1])
    # Step t of the long chain is step t alone with its own noise given.
    z = drawn(77, 2, n_steps, shape).float()
    for t in (0, 127, 128, 260):
        one = emulation.chain(choice, states[t].contiguous(), weights, steps[:, t : t + 1].contiguous(),
                              noise=z[t : t + 1].contiguous())  # fmt: skip
        torch.testing.assert_close(one, states[t + 1], rtol=0, atol=1e-6)
    choice = chosen(emulation, form, 1, cluster, shape, hidden, 2, gradient=True)
    choice.threads = 16
    whole, by_noise = emulation.gradient(choice, states, weights, steps, x, noise_gradient=True)
    part = x
    for first, last in ((256, 261), (128, 256), (0, 128)):
        ids = None
        part, part_noise = emulation.gradient(
            choice, states[first : last + 1].contiguous(), weights, steps[:, first:last].contiguous(), part,
            noise=z[first:last].contiguous(), sample_ids=ids, noise_gradient=True,
        )  # fmt: skip
        assert torch.equal(part_noise, by_noise[first:last])
    assert torch.equal(part, whole)


def test_seeds_ids_and_given_noise(emulation) -> None:
    weights, shape, hidden = reference64.random_weights(1, 2, 3), (1, 8, 4), (2, 3)
    x, steps = images(3, shape), settings(2)
    choice = chosen(emulation, "general", 2, 1, shape, hidden, 3)
    plain = emulation.chain(choice, x, weights, steps, seed=2**64 - 5)
    signed = torch.tensor([-5])
    assert torch.equal(emulation.chain(choice, x, weights, steps, seed=1, seed_tensor=signed), plain)
    ids = torch.tensor([2, 0, 1])
    permuted = emulation.chain(choice, x[ids].contiguous(), weights, steps, seed=2**64 - 5, sample_ids=ids)
    assert torch.equal(permuted, plain[ids])
    assert not torch.equal(emulation.chain(choice, x, weights, steps, seed=2**64 - 6), plain)
    noise = torch.stack([emulation.noise(2**64 - 5, torch.arange(3), t, 32)[0].reshape(3, *shape) for t in range(2)])
    assert torch.equal(emulation.chain(choice, x, weights, steps, seed=0, noise=noise), plain)


def test_nan_stays_nan_and_in_its_image(emulation) -> None:
    weights, x = reference64.random_weights(1, 10, 25), images(8, DIGIT)
    choice = chosen(emulation, "digits", 8, 1, DIGIT, (10, 25), 8)
    steps = settings(1, low=0.0, high=1.0)
    clean = emulation.chain(choice, x, weights, steps)
    x[3, 0, 5, 6] = float("nan")
    result = emulation.chain(choice, x, weights, steps)
    assert bool(result[3, 0, 5, 6].isnan())
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(result[others], clean[others])


def test_noise_has_the_words_of_the_contract(emulation) -> None:
    ids = [0, 5, -1, 2**40]
    z, words = emulation.noise(2**64 - 3, torch.tensor(ids), 9, 70)
    assert (words.numpy() == reference64.philox_words(2**64 - 3, ids, 9, 18)).all()
    z, _ = emulation.noise(2**64 - 3, torch.tensor(ids), 9, 20_001)
    exact = reference64.normals(2**64 - 3, ids, 9, 20_001)
    # An angle near a zero of sine or cosine is exact, so errors are relative to the deviate itself.
    assert float(reference64.ulp_error(z.numpy(), exact).max()) <= 8.0


@pytest.mark.parametrize("shape", [(5, 3, 7), (1, 1), (3, 2, 8)])
@pytest.mark.parametrize("noise_scale", [0.0, 0.2])
@pytest.mark.parametrize("given", [False, True])
def test_update(emulation, shape, noise_scale: float, given: bool) -> None:
    x, r = images(shape[0], shape[1:], 1), images(shape[0], shape[1:], 2)
    z = torch.from_numpy(reference64.normals(4, list(range(shape[0])), 2, math.prod(shape[1:]))).reshape(shape)
    result = emulation.update(x, r, torch.tensor([0.3, noise_scale, 0.3, 0.7]), seed=4, step=2,
                              noise=z.float() if given else None)  # fmt: skip
    expected = (x.double() + 0.3 * (r.double() - x.double()) + noise_scale * z).clamp(0.3, 0.7)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
