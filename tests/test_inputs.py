"""Every input rule of purify: kinds, dtypes, layouts, values; nothing is written to and nothing is shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastmalade
from fastmalade import Autoencoder, ChainConfig, Purifier

CONFIG = ChainConfig(n_steps=2, step_size=0.3, noise_scale=0.1)
TORCH_DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
NUMPY_DTYPES = ["uint8", "float16", "float32", "float64", ">f4", ">f8"]


def small(channels: int = 1) -> Purifier:
    generator = torch.Generator().manual_seed(0)
    return Purifier(Autoencoder(channels, (3, 5), generator=generator).requires_grad_(False), CONFIG)


GREY, COLOUR = small(1), small(3)


def in_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (x * 255).round().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    return 0.51 / 255 if dtype == torch.uint8 else torch.finfo(dtype).eps + 1e-6


def as_unit(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_dtypes(make_images, dtype):
    x = in_dtype(make_images(3, 1, 8, 12), dtype)
    before = x.clone()
    result = GREY.purify(x, seed=1)
    assert isinstance(result, torch.Tensor)
    assert (result.dtype, result.shape, result.device) == (dtype, x.shape, x.device)
    expected = GREY(as_unit(x), seed=1)
    torch.testing.assert_close(as_unit(result), expected, rtol=0, atol=tolerance(dtype))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_dtypes(make_images, dtype):
    kind = torch.uint8 if dtype == "uint8" else torch.float32
    x = in_dtype(make_images(3, 1, 8, 12), kind).numpy().astype(dtype)
    before = x.copy()
    result = GREY.purify(x, seed=1)
    assert type(result) is np.ndarray
    assert (result.dtype, result.shape) == (x.dtype, x.shape)
    unit = x.astype(np.float32) / (255 if dtype == "uint8" else 1)
    expected = GREY(torch.from_numpy(unit), seed=1).numpy()
    got = result.astype(np.float32) / (255 if dtype == "uint8" else 1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.51 / 255 if dtype == "uint8" else 1e-3)
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    ("purifier", "shape", "to_nchw"),
    [
        (GREY, (8, 12), lambda t: t[None, None]),
        (GREY, (3, 8, 12), lambda t: t[:, None]),
        (GREY, (3, 1, 8, 12), lambda t: t),
        (GREY, (3, 8, 12, 1), lambda t: t.permute(0, 3, 1, 2)),
        (COLOUR, (2, 3, 8, 12), lambda t: t),
        (COLOUR, (2, 8, 12, 3), lambda t: t.permute(0, 3, 1, 2)),
        (COLOUR, (1, 4, 4, 3), lambda t: t.permute(0, 3, 1, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_layouts(make_images, purifier, shape, to_nchw, kind):
    x = make_images(*shape)
    result = purifier.purify(x if kind == "torch" else x.numpy(), seed=1)
    assert isinstance(result, torch.Tensor if kind == "torch" else np.ndarray)
    assert tuple(result.shape) == shape
    expected = purifier(to_nchw(x).contiguous(), seed=1)
    assert torch.equal(to_nchw(torch.as_tensor(result)), expected)


def test_nchw_wins_where_both_layouts_fit(make_images):
    model = small(4)
    x = make_images(2, 4, 8, 4)
    assert torch.equal(model.purify(x, seed=1), model(x, seed=1))


@given(
    batch=st.sampled_from([1, 2, 7, 15, 16, 17]),
    sides=st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([4, 8, 12])),
    colour=st.booleans(),
    channels_last=st.booleans(),
    step=st.sampled_from([1, 2, -1]),
    transposed=st.booleans(),
    use_numpy=st.booleans(),
    read_only=st.booleans(),
)
def test_any_strides(batch, sides, colour, channels_last, step, transposed, use_numpy, read_only):
    purifier, channels = (COLOUR, 3) if colour else (GREY, 1)
    shape = (batch, *sides, channels) if channels_last else (batch, channels, *sides)
    rng = np.random.default_rng(0)
    x = rng.random((shape[0] * 2, *shape[1:]), dtype=np.float32)[::step][:batch]
    if transposed:
        x = np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1)
    expected = purifier.purify(np.ascontiguousarray(x), seed=4)
    before = x.copy()
    if use_numpy or step < 0:
        x.setflags(write=not read_only)
        got = purifier.purify(x, seed=4)
    else:
        got = purifier.purify(torch.from_numpy(x), seed=4).numpy()
    assert np.array_equal(got, expected)
    assert np.array_equal(x, before)


def test_strides_of_single_images(make_images):
    """Strides along sides of length 1 mean nothing to numpy, which calls such arrays contiguous; torch refuses them."""
    x = make_images(2, 1, 8, 8).numpy()
    reversed_one = x[::-1][:1]
    packed = np.zeros(1, dtype=[("image", np.float32, (1, 8, 8)), ("label", np.uint8)])
    packed["image"] = x[1]
    for one in (reversed_one, packed["image"]):
        assert one.flags.c_contiguous
        assert np.array_equal(GREY.purify(one, seed=1), GREY.purify(x[1:].copy(), seed=1))
        assert np.array_equal(one, x[1:])


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken_without_a_warning():
    x = np.frombuffer(bytes(range(256)) * 3, dtype=np.uint8).reshape(3, 16, 16)
    assert not x.flags.writeable
    result = GREY.purify(x, seed=1)
    assert result.flags.writeable
    assert result.dtype == np.uint8


def test_channels_last_memory_format_is_kept(make_images):
    x = make_images(2, 3, 8, 12).to(memory_format=torch.channels_last)
    result = COLOUR.purify(x, seed=1)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, COLOUR.purify(x.contiguous(), seed=1))


def test_broadcast_views_and_gradients(make_images):
    x = make_images(1, 1, 8, 8).expand(5, 1, 8, 8)
    assert GREY.purify(x, seed=1).shape == (5, 1, 8, 8)
    leaf = make_images(2, 1, 8, 8).requires_grad_()
    result = GREY.purify(leaf, seed=1)
    assert not result.requires_grad
    assert leaf.grad is None
    parameter = torch.nn.Parameter(make_images(2, 1, 8, 8))
    assert torch.equal(GREY.purify(parameter, seed=1), result)


@pytest.mark.parametrize("n_steps", [0, 2])
@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 1, 8, 8), (2, 8, 8, 1)])
def test_results_share_no_memory_with_the_input(make_images, n_steps, shape):
    x = make_images(*shape)
    before = x.clone()
    for images in (x, x.numpy()):
        result = GREY.purify(images, n_steps=n_steps)
        result.fill(7) if isinstance(result, np.ndarray) else result.fill_(7)
        assert torch.equal(x, before)


class Capsule:
    """An array of some other library: nothing but the DLPack protocol."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class ArrayApiCapsule(Capsule):
    """The same with an array-API namespace that can take results back."""

    def __array_namespace__(self):
        return type("Namespace", (), {"from_dlpack": lambda _, array: ArrayApiCapsule(torch.from_dlpack(array))})()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_dlpack(make_images, dtype):
    x = in_dtype(make_images(3, 8, 8), dtype)
    before = x.clone()
    expected = GREY.purify(x, seed=1)
    result = GREY.purify(Capsule(x), seed=1)
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, expected)
    own_kind = GREY.purify(ArrayApiCapsule(x), seed=1)
    assert type(own_kind) is ArrayApiCapsule
    assert torch.equal(own_kind.tensor, expected)
    assert torch.equal(x, before)


def test_uint8_is_rounded_and_saturates():
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(GREY.purify(every_value, n_steps=0), every_value)
    ranged = Purifier(GREY.autoencoder, CONFIG, value_range=(-1.0, 1.0))
    assert torch.equal(ranged.purify(every_value, n_steps=0), every_value)
    wild = GREY.purify(every_value, seed=1, noise_scale=50.0, clamp="none")
    assert set(wild.flatten().tolist()) >= {0, 255}
    middle = ((wild > 0) & (wild < 255)).float().mean()
    assert float(middle) < 0.2


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (0, 8, 8, 1), (0, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32], ids=str)
def test_empty_batches(shape, dtype):
    x = torch.zeros(shape, dtype=dtype)
    for images in (x, x.numpy()):
        result = GREY.purify(images)
        assert type(result) is type(images)
        assert tuple(result.shape) == shape
        assert result.dtype == images.dtype
    assert GREY.purify(x, sample_ids=[]).shape == shape


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "got NaN"),
        (float("inf"), "got infinity"),
        (-float("inf"), "got infinity"),
        (1.0001, r"in \[0.0, 1.0\], got values from .* to 1.0001"),
        (-0.0001, "got values from -0.0001"),
        (255.0, "to 255.0; rescale"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_out_of_range(make_images, kind, value, message, dtype):
    x = make_images(2, 1, 8, 8).to(getattr(torch, dtype))
    x[1, 0, 3, 5] = value
    with pytest.raises(ValueError, match=message.replace("1.0001", "1.000").replace("0.0001", "(0.0001|9.9999)")):
        GREY.purify(x if kind == "torch" else x.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_values_out_of_range_in_half_precision(dtype):
    x = torch.zeros(1, 1, 8, 8, dtype=dtype)
    x[0, 0, 0, 0] = 1 + 6 * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match=r"got values from 0\.0 to 1\.0"):
        GREY.purify(x)
    # 0.7 lies above what half precision makes of it, and the bound of the range is rounded likewise.
    edge = torch.full((1, 1, 8, 8), 0.7, dtype=dtype)
    ranged = Purifier(GREY.autoencoder, CONFIG, value_range=(-0.1, 0.7))
    ranged.purify(ranged.purify(edge, noise_scale=3.0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize(
    "shape",
    [
        (),
        (8,),
        (0,),
        (2, 2, 8, 8),
        (2, 1, 6, 8),
        (2, 1, 8, 6),
        (2, 1, 0, 8),
        (2, 8, 8, 2),
        (1, 2, 1, 8, 8),
        (2, 8, 6),
    ],
)
def test_wrong_shapes(shape, channels, kind):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"images: expected shape .*multiples of 4, got \("):
        small(channels).purify(x if kind == "torch" else x.numpy())


def test_colour_images_need_a_batch():
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\) or \(B, H, W, 3\).*got \(3, 8, 8\)"):
        COLOUR.purify(torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int32", "int64", "uint16", "complex64", "object", "U1", "longdouble"]
)
def test_wrong_numpy_dtypes(dtype):
    if dtype == "longdouble" and np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 here")
    with pytest.raises(TypeError, match=r"images: expected dtype uint8 .*got"):
        GREY.purify(np.zeros((2, 8, 8), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.int64, torch.complex64], ids=str)
def test_wrong_torch_dtypes(dtype):
    with pytest.raises(TypeError, match=rf"images: expected dtype uint8 .*got {dtype}"):
        GREY.purify(torch.zeros(2, 8, 8, dtype=dtype))
    if dtype != torch.bool:
        with pytest.raises(TypeError, match="images: expected dtype uint8"):
            GREY.purify(Capsule(torch.zeros(2, 8, 8, dtype=dtype)))


@pytest.mark.parametrize("images", [[[0.0] * 8] * 8, None, 3.0, "digit.png", (np.zeros((8, 8)),)])
def test_wrong_kinds(images):
    with pytest.raises(TypeError, match=f"images: expected a torch tensor.*got {type(images).__name__}"):
        GREY.purify(images)


def test_masked_and_sparse():
    with pytest.raises(TypeError, match="without a mask"):
        GREY.purify(np.ma.masked_array(np.zeros((8, 8))))
    with pytest.raises(TypeError, match="dense"):
        GREY.purify(torch.zeros(8, 8).to_sparse())


def test_sample_ids_count_images():
    with pytest.raises(ValueError, match=r"sample_ids: expected shape \(1,\)"):
        GREY.purify(torch.zeros(8, 8), sample_ids=[0, 1])


def test_top_level_purify_takes_a_purifier(make_images):
    x = make_images(2, 8, 8).numpy()
    got = fastmalade.purify(x, model=GREY, seed=1, n_steps=3, backend="torch")
    assert np.array_equal(got, GREY.purify(x, seed=1, n_steps=3, backend="torch"))
