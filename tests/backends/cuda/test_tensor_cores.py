"""The chain's reduced precisions: TF32 exact to the bit, errors as stated, bits that depend on the image alone."""

from __future__ import annotations

import emulated
import numpy as np
import pytest
import reference64
import torch
from emulated import DIGIT, INFINITY, drawn, images, settings

import fastmalade
from fastmalade.chain import operators as ops

pytestmark = pytest.mark.slow

HIDDEN = (10, 25)
REDUCED = ("tf32x3", "tf32")
# The largest difference of a state from float64, ten steps on images of [0, 1]; `test_errors_over_weights` prints what
# it finds. TF32 rounds an operand by up to 2^-11 = 4.9e-4 of itself.
STATED = {"tf32x3": 1e-6, "tf32": 1e-3}


def chosen(emulation, precision: str, batch: int, **options) -> emulated.Choice:
    choice = emulation.choose((*DIGIT, *HIDDEN), batch, precision=precision, **options)
    assert choice.name == ("tensor" if precision != "fp32" else choice.name)
    return choice


def test_rounding_to_tf32_is_exact(emulation) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 20_000, dtype=np.uint32)
    # Ties and their neighbours, on both sides of zero and of a power of two.
    ties = np.array([base + sign + low for base in (0x3F800000, 0x3FFFE000, 0x00000000, 0x7F7FE000)
                     for sign in (0, 0x80000000) for low in (0, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x3000)],
                    dtype=np.uint32)  # fmt: skip
    x = torch.from_numpy(np.concatenate([bits, ties]).view(np.float32).copy())
    x = x[x.isfinite()]
    rounded, high, low = emulation.operands(x)
    # Nearest with ties away from zero, in integers: half a unit of the 10th bit is added to the magnitude.
    magnitude = x.numpy().view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    nearest = (magnitude + 0x1000) // 0x2000 * 0x2000
    expected = (nearest | (x.numpy().view(np.uint32).astype(np.int64) & 0x80000000)).astype(np.uint32)
    assert (rounded.numpy().view(np.uint32) == expected).all()
    # Two TF32 numbers leave at most 2^-22 of a number: half a unit of the 21st bit. Far from over- and underflow.
    usual = (x.abs() > 2.0**-80) & (x.abs() < 2.0**80)
    assert int(usual.sum()) > 10_000
    for part in (high, low):
        assert (part[usual].numpy().view(np.uint32) & 0x1FFF == 0).all()
    left = (x.double() - high.double() - low.double()).abs()[usual]
    assert float((left / x.double().abs()[usual]).max()) <= 2.0**-22


def errors(emulation, precision: str, seed: int, n_steps: int, *, batch: int = 3, noise_scale: float = 0.1,
           low: float = -INFINITY, high: float = INFINITY) -> tuple[float, float]:  # fmt: skip
    """Largest differences from float64 of all states: the kernel's, and those of torch in float32."""
    weights = reference64.random_weights(1, *HIDDEN, seed=seed)
    x, steps = images(batch, DIGIT, seed), settings(n_steps, noise_scale=noise_scale, low=low, high=high)
    noise = drawn(77, batch, n_steps, DIGIT)
    arguments = (weights, steps[0].tolist(), steps[1].tolist(), noise, low, high)
    exact, single = reference64.chain(x.double(), *arguments), reference64.chain(x, *arguments)
    result = emulation.chain(chosen(emulation, precision, batch), x, weights, steps, trajectory=True)
    return tuple(float((value.double() - exact).abs().max()) for value in (result, single))


def check_stated(precision: str, error: float, own: float) -> None:
    assert error <= STATED[precision]
    if precision == "tf32x3":
        assert error <= 2 * own + 1e-6, "the rule of the float32 kernels"
    else:
        assert error > 20 * own, "as good as float32: operands are not rounded"


@pytest.mark.parametrize("clamp", [(0.1, 0.9), (-INFINITY, INFINITY)], ids=["clamped", "free"])
@pytest.mark.parametrize("precision", REDUCED)
def test_stated_errors(emulation, precision: str, clamp: tuple[float, float]) -> None:
    # All ten steps are in `test_errors_over_weights`; most of the error is that of the first.
    n_steps = 4 if clamp[0] > -INFINITY else 1
    check_stated(precision, *errors(emulation, precision, 0, n_steps, low=clamp[0], high=clamp[1]))


@pytest.mark.complete
@pytest.mark.parametrize("weights", ["random", "malade-mnist"])
@pytest.mark.parametrize("precision", REDUCED)
def test_errors_over_weights(emulation, monkeypatch, precision: str, weights: str) -> None:
    if weights != "random":
        shipped = [w.detach() for w in fastmalade.Purifier.from_pretrained(weights).autoencoder.weights()]
        monkeypatch.setattr(reference64, "random_weights", lambda *sizes, seed: shipped)
    found = [errors(emulation, precision, seed, 10, batch=8, low=low, high=high)
             for seed in range(5 if weights == "random" else 1)
             for low, high in ((-INFINITY, INFINITY), (0.0, 1.0))]  # fmt: skip
    for error, own in found:
        check_stated(precision, error, own)
    print(f"{precision}, {weights}: up to {max(e for e, _ in found):.2e}, torch float32 {max(o for _, o in found):.2e}")


def test_one_reconstruction(emulation) -> None:
    weights, x = reference64.random_weights(1, *HIDDEN), images(9, DIGIT)
    exact = reference64.forward(x.double(), weights)
    result = emulation.forward(chosen(emulation, "tf32x3", 9), x, weights)
    reference64.assert_within_rule(result, reference64.forward(x, weights), exact)


@pytest.mark.parametrize("precision", REDUCED)
def test_the_same_bits_whatever_the_batch_and_where_weights_lie(emulation, precision: str) -> None:
    weights, x, ids = reference64.random_weights(1, *HIDDEN), images(10, DIGIT), torch.arange(10) * 5 - 3
    steps = settings(2, low=0.05, high=0.9)
    choice = chosen(emulation, precision, 10, device=(1, 227 * 1024, 16))
    whole = emulation.chain(choice, x, weights, steps, sample_ids=ids, trajectory=True)
    assert (choice.resident, choice.blocks) == (1, 1), "the block has two groups, one after the other"
    # An image alone, and in another place of a group, its neighbours others, its weights out of the caches.
    tight = (132, choice.shared_bytes - 4, 1)
    for part, device in (([4], tight), ([9, 4, 3], emulated.H200)):
        other = chosen(emulation, precision, len(part), device=device)
        assert other.resident == (device is not tight)
        result = emulation.chain(other, x[part].contiguous(), weights, steps, sample_ids=ids[part])
        assert torch.equal(result, whole[-1, part])


def test_nan_stays_in_its_image(emulation) -> None:
    weights, x, steps = reference64.random_weights(1, *HIDDEN), images(8, DIGIT), settings(1, low=0.0, high=1.0)
    choice = chosen(emulation, "tf32", 8)
    clean = emulation.chain(choice, x, weights, steps)
    x[3, 0, 5, 6] = float("nan")
    result = emulation.chain(choice, x, weights, steps)
    assert bool(result[3, 0, 5, 6].isnan())
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(result[others], clean[others])


def test_what_is_refused(emulation) -> None:
    for sizes, options, message in (
        ((3, 32, 32, 10, 25), {}, "precision: expected fp32 for this shape .*1x28x28.* got tf32"),
        ((*DIGIT, 10, 24), {}, "precision: expected fp32 for this shape"),
        ((*DIGIT, *HIDDEN), {"form": "digits"}, "form: expected auto or tensor for the precision tf32, got digits"),
        ((*DIGIT, *HIDDEN), {"images": 4}, "images, cluster: expected 8 and 1, or 0, for the form tensor, got 4 and 0"),
        ((*DIGIT, *HIDDEN), {"cluster": 8}, "got 0 and 8"),
        ((*DIGIT, *HIDDEN), {"device": (40, 64 * 1024, 1)}, "precision: expected fp32 on a device with 65536 bytes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            emulation.choose(sizes, 8, precision="tf32", **options)
        with pytest.raises(RuntimeError, match=message):
            emulation.choose(sizes, 8, precision="tf32", gradient=True, **options)
    for form in ("general", "cluster"):
        with pytest.raises(RuntimeError, match=f"expected auto or tensor for the precision tf32x3, got {form}"):
            emulation.choose((*DIGIT, *HIDDEN), 1, precision="tf32x3", form=form)
    for gradient in (False, True):
        with pytest.raises(
            RuntimeError, match="form: expected a precision of tf32x3 or tf32 for the form tensor, got fp32"
        ):
            emulation.choose((*DIGIT, *HIDDEN), 8, gradient=gradient, form="tensor")


def test_one_form_whatever_the_batch(emulation) -> None:
    for device in (emulated.H200, emulated.A100):
        for batch in (1, 8, 50, 5000):
            for precision in REDUCED:
                assert chosen(emulation, precision, batch, device=device).name == "tensor"
                # Of float32, and of the sizes that its own forms have.
                plain = emulation.choose((*DIGIT, *HIDDEN), batch, gradient=True, device=device)
                forced = {"form": "tensor", "images": 8, "cluster": 1}
                for options in ({}, forced):
                    found = emulation.choose((*DIGIT, *HIDDEN), batch, gradient=True, device=device,
                                             precision=precision, **options)  # fmt: skip
                    assert found == plain


def model_of(weights: list[torch.Tensor]) -> fastmalade.Autoencoder:
    model = fastmalade.Autoencoder(1, HIDDEN).requires_grad_(False)
    for own, value in zip(model.weights(), weights, strict=True):
        own.copy_(value)
    return model


def test_the_public_chain_and_its_gradient(on_emulation) -> None:
    precision = "tf32"
    weights, x, ids = reference64.random_weights(1, *HIDDEN), images(2, DIGIT), torch.tensor([5, 2])
    model, steps = model_of(weights), settings(2, low=0.1, high=0.9)
    arguments = (model, steps[0].tolist(), steps[1].tolist())
    options = {"seed": 77, "sample_ids": ids, "backend": "cuda", "clamp": (0.1, 0.9), "precision": precision}
    choice = chosen(on_emulation, precision, 2)
    states = on_emulation.chain(choice, x, weights, steps, sample_ids=ids, trajectory=True)
    assert torch.equal(fastmalade.langevin_chain(x, *arguments, **options), states[-1])
    assert torch.equal(fastmalade.langevin_trajectory(x, *arguments, **options), states)
    assert not torch.equal(fastmalade.langevin_chain(x, *arguments, **{**options, "precision": "fp32"}), states[-1])
    leaf = x.clone().requires_grad_()
    result = fastmalade.langevin_chain(leaf, *arguments, **options)
    assert torch.equal(result, states[-1])
    cotangent = images(2, DIGIT, 9) - 0.5
    # That of the float32 steps at the states of the reduced chain.
    expected, _ = on_emulation.gradient(on_emulation.choose((*DIGIT, *HIDDEN), 2, gradient=True), states, weights,
                                        steps, cotangent, sample_ids=ids)  # fmt: skip
    assert torch.equal(torch.autograd.grad(result, leaf, cotangent)[0], expected)


@pytest.mark.parametrize("precision", REDUCED)
def test_no_steps_and_no_images(on_emulation, precision: str) -> None:
    model, x = model_of(reference64.random_weights(1, *HIDDEN)), images(2, DIGIT)
    options = {"backend": "cuda", "precision": precision}
    result = fastmalade.langevin_chain(x, model, [], [], **options)
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
    assert fastmalade.langevin_chain(x[:0], model, [0.1], [0.1], **options).shape == (0, *DIGIT)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fastmalade.langevin_chain(leaf, model, [], [], **options), leaf, x)
    assert torch.equal(gradient, x)


def test_a_purifier_hands_its_precision_on(on_emulation) -> None:
    x, config = images(2, DIGIT), fastmalade.ChainConfig(n_steps=1, step_size=0.3, noise_scale=0.1)
    model = model_of(reference64.random_weights(1, *HIDDEN))
    purifier = fastmalade.Purifier(model, config, backend="cuda", precision="tf32x3")
    expected = fastmalade.langevin_chain(x, model, *config.schedule(), seed=3, backend="cuda", clamp=(0.0, 1.0),
                                         precision="tf32x3")  # fmt: skip
    assert torch.equal(purifier(x, seed=3), expected)
    assert torch.equal(purifier.purify(x, seed=3), expected)
    assert torch.equal(purifier.trajectory(x, seed=3)[-1], expected)
    assert "precision='tf32x3'" in repr(purifier)
    purifier.precision = "fp32"
    assert not torch.equal(purifier(x, seed=3), expected)
    assert fastmalade.Purifier.from_pretrained("malade-mnist", precision="tf32x3").precision == "tf32x3"


def test_the_operator_with_a_precision(on_emulation) -> None:
    x, weights = images(1, DIGIT).requires_grad_(), reference64.random_weights(1, *HIDDEN)
    seed, ids = ops.seed_bits(1), torch.arange(1)
    settings_of_one = ([0.3], [0.1], [0.0], [0.9])
    arguments = (x, weights, *settings_of_one, seed, ids, None, "cuda", None, "tf32")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.fastmalade.langevin_chain.default, arguments, test_utils=tests)
    model = model_of(weights)

    def call(leaf: torch.Tensor) -> torch.Tensor:
        return fastmalade.langevin_chain(leaf, model, [0.3], [0.1], seed=1, backend="cuda", precision="tf32")

    expected = call(x.detach())
    torch.compiler.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(call, backend="aot_eager", fullgraph=True)(x.detach()), expected)
        assert torch.equal(torch.export.export(_Module(call), (x.detach(),)).module()(x.detach()), expected)
    torch.compiler.reset()


class _Module(torch.nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self._call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(x)
