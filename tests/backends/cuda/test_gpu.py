"""The CUDA backend on a GPU; skipped where there is none (test_emulated_chain.py runs the same kernels there)."""

from __future__ import annotations

import functools

import pytest
import reference64
import torch

from fastmalade.backends.cuda import calls as cuda
from fastmalade.backends.values import NoiseSource, Step, Steps

INFINITY = float("inf")
SHAPES = [((1, 28, 28), (10, 25)), ((3, 32, 32), (10, 25)), ((2, 12, 8), (3, 5)), ((3, 64, 64), (10, 25))]
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    """The first device, or a skip with the reason why the backend cannot use it."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    reason = cuda.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    return torch.device("cuda", 0)


def model(shape, hidden, batch: int, gpu: torch.device):
    weights = reference64.random_weights(shape[0], *hidden)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1))
    return x, weights, x.to(gpu), [w.to(gpu) for w in weights]


def steps_of(n_steps: int, low: float = 0.1, high: float = 0.9) -> Steps:
    sizes = tuple(0.3 / (t + 1) for t in range(n_steps))
    return Steps(sizes, (0.1,) * n_steps, (low,) * n_steps, (high,) * n_steps)


def forms_of(shape, hidden, batch: int, *, gradient: bool = False) -> list[str]:
    found = []
    for form in ("digits", "general", "cluster"):
        try:
            cuda.choice(batch, shape, hidden, gradient=gradient, form=form)
        except ValueError:
            continue
        found.append(form)
    return found


def gradient_forms(shape, hidden, batch: int) -> list[str]:
    """Forms that give a gradient of this shape; a skip where its activations do not fit the chip."""
    forms = forms_of(shape, hidden, batch, gradient=True)
    if not forms:
        pytest.skip(str(cuda.supports(shape, hidden, gradient=True)))
    return forms


@pytest.mark.parametrize(("shape", "hidden"), SHAPES)
def test_chain_and_gradient_within_the_tolerance_rule_sanitized(gpu, shape, hidden) -> None:
    x, weights, on_gpu, gpu_weights = model(shape, hidden, 9, gpu)
    steps, source = steps_of(3), NoiseSource(5)
    a, d, *_ = steps
    noise = torch.stack([cuda.standard_normal(5, torch.arange(9, device=gpu), t, x[0].numel()) for t in range(3)])
    noise = noise.reshape(3, *x.shape).cpu()
    exact = reference64.chain(x.double(), weights, a, d, noise, 0.1, 0.9)
    single = reference64.chain(x, weights, a, d, noise, 0.1, 0.9)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for form in forms_of(shape, hidden, 9):
        states = cuda.langevin_chain(on_gpu, gpu_weights, steps, source, trajectory=True, form=form)
        reference64.assert_within_rule(states.cpu(), single, exact)
        results.append(states)
    assert all(torch.equal(result, results[0]) for result in results)
    states = results[0].cpu()

    def by_autograd(dtype: torch.dtype) -> torch.Tensor:
        g = cotangent.to(dtype)
        for t in reversed(range(3)):
            state = states[t].to(dtype).requires_grad_()
            free = state + a[t] * (reference64.forward(state, weights) - state) + d[t] * noise[t].to(dtype)
            (g,) = torch.autograd.grad(free.clamp(0.1, 0.9), state, g)
        return g

    gradients = [
        cuda.chain_gradient(cotangent.to(gpu), on_gpu, gpu_weights, steps, source, form=form, max_bytes=limit)
        for form in gradient_forms(shape, hidden, 9) for limit in (None, 1)
    ]  # fmt: skip
    reference64.assert_within_rule(gradients[0].cpu(), by_autograd(torch.float32), by_autograd(torch.float64))
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


# As stated for the emulation in test_tensor_cores.py; 9 images are a whole group and part of another.
@pytest.mark.parametrize(("precision", "stated"), [("tf32x3", 1e-6), ("tf32", 1e-3)])
def test_reduced_precisions_sanitized(gpu, precision: str, stated: float) -> None:
    x, weights, on_gpu, gpu_weights = model(*SHAPES[0], 9, gpu)
    steps, source = steps_of(3), NoiseSource(5)
    a, d, *_ = steps
    noise = torch.stack([cuda.standard_normal(5, torch.arange(9, device=gpu), t, 784) for t in range(3)])
    noise = noise.reshape(3, *x.shape)
    exact = reference64.chain(x.double(), weights, a, d, noise.cpu(), 0.1, 0.9)
    states = cuda.langevin_chain(on_gpu, gpu_weights, steps, source, trajectory=True, precision=precision)
    assert float((states.cpu().double() - exact).abs().max()) <= stated
    last = NoiseSource(5, torch.tensor([8], device=gpu))
    alone = cuda.langevin_chain(on_gpu[8:], gpu_weights, steps, last, precision=precision)
    assert torch.equal(alone, states[-1, 8:])
    # The gradient is float32's at these states, of which one step has only the one it starts from.
    arguments = (torch.ones_like(on_gpu[8:]), on_gpu[8:], gpu_weights, steps.part(0, 1), last)
    reduced = cuda.chain_gradient(*arguments, precision=precision)
    assert torch.equal(reduced, cuda.chain_gradient(*arguments))


@pytest.mark.parametrize(("shape", "hidden"), SHAPES)
def test_products_sanitized(gpu, shape, hidden) -> None:
    x, weights, on_gpu, gpu_weights = model(shape, hidden, 9, gpu)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        at = x.to(dtype).requires_grad_()
        r = reference64.forward(at, weights)
        (product,) = torch.autograd.grad(r, at, cotangent.to(dtype), retain_graph=True)
        return product, torch.autograd.grad((at - r).square().sum(), at)[0]

    found = [
        (cuda.autoencoder_vjp(cotangent.to(gpu), on_gpu, gpu_weights, form=form),
         cuda.reconstruction_error_gradient(on_gpu, gpu_weights, form=form))
        for form in gradient_forms(shape, hidden, 9)
    ]  # fmt: skip
    for result, single, exact in zip(found[0], by_autograd(torch.float32), by_autograd(torch.float64), strict=True):
        reference64.assert_within_rule(result.cpu(), single, exact)
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("batch", [1, 7, 16, 33, 300, 1100])
def test_an_image_does_not_depend_on_its_batch(gpu, batch: int) -> None:
    _, _, x, weights = model((1, 28, 28), (10, 25), batch, gpu)
    ids = torch.arange(batch, device=gpu) + 100
    whole = cuda.langevin_chain(x, weights, steps_of(4), NoiseSource(3, ids))
    last = cuda.langevin_chain(x[-1:], weights, steps_of(4), NoiseSource(3, ids[-1:]))
    assert torch.equal(whole[-1:], last)


def test_noise_has_the_words_of_the_contract_sanitized(gpu) -> None:
    ids = [0, 5, -1, 2**40]
    words = cuda.philox_words(2**64 - 3, torch.tensor(ids, device=gpu), 9, 70)
    assert (words.cpu().numpy() == reference64.philox_words(2**64 - 3, ids, 9, 18)).all()
    z = cuda.standard_normal(2**64 - 3, torch.tensor(ids, device=gpu), 9, 70)
    exact = torch.from_numpy(reference64.normals(2**64 - 3, ids, 9, 70))
    torch.testing.assert_close(z.cpu().double(), exact, rtol=2e-6, atol=1e-6)


def test_update_sanitized(gpu) -> None:
    x, r = (torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    ids = torch.arange(5, device=gpu)
    result = cuda.langevin_update(x.to(gpu), r.to(gpu), Step(2, 0.3, 0.2, 0.1, 0.8), NoiseSource(4, ids))
    z = cuda.standard_normal(4, ids, 2, 21).cpu().reshape(x.shape)
    expected = (x.double() + 0.3 * (r.double() - x.double()) + 0.2 * z.double()).clamp(0.1, 0.8)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=1e-6)


def test_streams_are_respected(gpu) -> None:
    _, _, x, weights = model((1, 28, 28), (10, 25), 64, gpu)
    expected = cuda.langevin_chain(x, weights, steps_of(3), NoiseSource(1))
    stream, source = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        source.copy_(x)
        result = cuda.langevin_chain(source, weights, steps_of(3), NoiseSource(1))
    stream.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("form", "precision"), [("auto", "fp32"), ("digits", "fp32"), ("auto", "tf32")])
def test_a_graph_draws_by_the_seed_it_reads(gpu, form: str, precision: str) -> None:
    _, _, x, weights = model((1, 28, 28), (10, 25), 8, gpu)
    seed = torch.tensor([1], device=gpu)
    call = functools.partial(cuda.langevin_chain, x, weights, steps_of(3), precision=precision)
    call(NoiseSource(seed), form=form)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(NoiseSource(seed), form=form)
    for value in (7, -2):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(out, call(NoiseSource(value % 2**64)))


def test_empty_and_no_steps(gpu) -> None:
    _, _, x, weights = model((1, 28, 28), (10, 25), 2, gpu)
    assert cuda.langevin_chain(x[:0], weights, steps_of(2), NoiseSource(0)).shape == (0, 1, 28, 28)
    assert torch.equal(cuda.langevin_chain(x, weights, steps_of(0), NoiseSource(0)), x)
