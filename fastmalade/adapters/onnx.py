"""A purifier as an ONNX file, with its noise as an input."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import reference
from fastmalade.checks import check_count
from fastmalade.defenses.purifier import Purifier
from fastmalade.files import write_bytes
from fastmalade.models.modes import evaluation_mode

_EXAMPLE_BATCH = 2


def export_onnx(
    purifier: Purifier, path: str | os.PathLike[str], *, image_shape: Sequence[int], opset: int | None = None
) -> None:
    """Write the chain of a purifier as an ONNX file, for runtimes without this package.

    The graph has the input ``x``, float32 (B, C, H, W) in the purifier's value range, the output ``purified`` of the
    same shape, and, where any step adds noise, the input ``noise``, float32 (N, B, C, H, W) of standard normals. B is
    free, the rest fixed. ONNX has no generator that follows a seed, so the caller draws the noise: anew for each call,
    as a defence needs it, or for step t of the images ``ids`` as
    ``fastmalade.standard_normal(seed, ids, t, (C, H, W))``, which makes the result that of
    ``purifier(x, seed=seed, sample_ids=ids)`` within rounding. Nothing looks at the values.

    Args:
        purifier: its r(x) is any module that torch's exporter takes, on the CPU in float32; not changed, and exported
            as in eval mode.
        path: the file, written whole or not at all.
        image_shape: (C, H, W).
        opset: version of ONNX's operators, torch's default if None.

    Raises:
        TypeError: not a purifier, or an r(x) that is not a module.
        ValueError: a shape that the autoencoder does not take, or parameters elsewhere or of another dtype.
        ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    if not isinstance(purifier, Purifier):
        raise TypeError(f"purifier: expected a fastmalade.Purifier, got {type(purifier).__name__}")
    autoencoder: Any = purifier.autoencoder
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"purifier: expected an autoencoder that is a module, got {type(autoencoder).__name__}")
    for parameter in autoencoder.parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(
                f"purifier: expected parameters of torch.float32 on cpu, got {parameter.dtype} on {parameter.device}"
            )
    if len(image_shape) != 3:
        raise ValueError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
    for count in image_shape:
        check_count("image_shape", count, 1)
    for module in ("onnx", "onnxscript"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"export_onnx needs {module}: pip install 'fastmalade[export]'")
    with evaluation_mode(autoencoder), torch.no_grad():
        write_bytes(path, _exported(_Chain(purifier), tuple(image_shape), opset))


class _Chain(nn.Module):
    """The chain in torch's operations alone."""

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.autoencoder: Any = purifier.autoencoder
        self.steps = purifier.chain.steps()
        self.value_range = purifier.value_range

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        low, high = self.value_range
        state = x if (low, high) == (0.0, 1.0) else (x - low) / (high - low)
        for t in range(self.steps.n_steps):
            a, d, least, most = self.steps.at(t)
            z = None if noise is None or d == 0.0 else noise[t]
            state = reference.langevin_step(state, self.autoencoder(state), a, d, z, low=least, high=most)
        return state if (low, high) == (0.0, 1.0) else state * (high - low) + low


def _exported(chain: _Chain, image_shape: tuple[int, ...], opset: int | None) -> bytes:
    x = torch.zeros(_EXAMPLE_BATCH, *image_shape)
    chain(x, torch.zeros(chain.steps.n_steps, *x.shape))  # a shape that does not fit is an error with our words
    batch = torch.export.Dim("batch")
    examples: tuple[Tensor, ...] = (x,)
    names, dynamic = ["x"], {"x": {0: batch}}
    if any(scale != 0.0 for scale in chain.steps.noise_scales):
        examples = (x, torch.zeros(chain.steps.n_steps, *x.shape))
        names, dynamic = ["x", "noise"], {"x": {0: batch}, "noise": {1: batch}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.onnx.export(
            chain, examples, dynamo=True, input_names=names, output_names=["purified"], dynamic_shapes=dynamic,
            opset_version=opset, verbose=False,
        )  # fmt: skip
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
