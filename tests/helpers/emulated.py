"""The CUDA kernels compiled for the CPU emulation (kernels/cuda/emulation) and called through ctypes."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import reference64
import torch
from repository import ROOT
from torch import Tensor

SOURCES = ["kernels/cuda/engine.cu", "kernels/cuda/choice.cpp", "kernels/cuda/emulation/driver.cpp"]
FORMS = {"automatic": 0, "digits": 1, "general": 2, "cluster": 3, "split": 4, "tensor": 5}
PRECISIONS = {"fp32": 0, "tf32x3": 1, "tf32": 2}
H200 = (132, 227 * 1024, 16)  # multiprocessors, shared memory of a block, blocks of a cluster
A100 = (108, 163 * 1024, 1)
DIGIT = (1, 28, 28)
INFINITY = math.inf


def images(batch: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))


def settings(n_steps: int, *, noise_scale: float = 0.1, low: float = -INFINITY, high: float = INFINITY) -> Tensor:
    """(4, N): step sizes, noise scales, lows, highs."""
    a = [0.3 / (t + 1) for t in range(n_steps)]
    return torch.tensor([a, [noise_scale] * n_steps, [low] * n_steps, [high] * n_steps])


def drawn(seed: int, batch: int, n_steps: int, shape: tuple[int, ...]) -> Tensor:
    """(N, B, C, H, W) float64: the noise of sample ids 0, 1, ... by the reference."""
    z = [reference64.normals(seed, list(range(batch)), t, math.prod(shape)) for t in range(n_steps)]
    return torch.from_numpy(np.stack(z)).reshape(n_steps, batch, *shape)


def compile_library(compiler: str, target: Path, extra: Sequence[str] = ()) -> Path:
    """The engine over the emulation as a shared object."""
    # Contraction is off as it is for nvcc: a multiply-add is fused where the source says so. Beyond -O1 the kernels run
    # no faster here, and take half as long again to compile.
    command = [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", *extra,
               "-DFASTMALADE_EMULATION", f"-I{ROOT / 'kernels'}", "-x", "c++",
               *(str(ROOT / source) for source in SOURCES), "-o", str(target)]  # fmt: skip
    subprocess.run(command, check=True)
    return target


@dataclass
class Choice:
    """How a call is launched, as kernels/cuda/engine.h has it."""

    form: int
    images: int
    cluster: int
    resident: int
    blocks: int
    threads: int
    shared_bytes: int
    packed_floats: int
    precision: int

    @property
    def name(self) -> str:
        return next(name for name, number in FORMS.items() if number == self.form)


def _pointer(value: Tensor | None) -> ctypes.c_void_p:
    assert value is None or value.is_contiguous()
    return ctypes.c_void_p(None if value is None else value.data_ptr())


class Emulation:
    """Functions of kernels/cuda/engine.h on CPU tensors."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("choose", "chain", "gradient", "error_gradient", "update", "noise"):
            getattr(self._library, f"emulated_{name}").restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, f"emulated_{name}")(*arguments)
        if error is not None:
            raise RuntimeError(error.decode())

    def choose(
        self, sizes: Sequence[int], batch: int, *, gradient: bool = False, device: Sequence[int] = H200,
        form: str = "automatic", images: int = 0, cluster: int = 0, precision: str = "fp32",
    ) -> Choice:  # fmt: skip
        found = (ctypes.c_int * 9)()
        self._call("choose", (ctypes.c_int64 * 5)(*sizes), ctypes.c_int64(batch), int(gradient),
                   (ctypes.c_int * 3)(*device), FORMS[form], images, cluster, PRECISIONS[precision], found)  # fmt: skip
        return Choice(*found)

    def _model(self, choice: Choice, x: Tensor, weights: Sequence[Tensor]) -> tuple:
        sizes = (ctypes.c_int64 * 5)(*x.shape[-3:], weights[0].shape[0], weights[2].shape[0])
        addresses = (ctypes.c_void_p * 10)(*(w.data_ptr() for w in weights))
        # 16-byte alignment is torch's own; NaN, so that a weight that is not packed shows.
        workspace = torch.full((choice.packed_floats,), float("nan"))
        fields = ctypes.c_int * 9
        return fields(*vars(choice).values()), sizes, addresses, workspace

    def chain(
        self, choice: Choice, x: Tensor, weights: Sequence[Tensor], settings: Tensor, *, seed: int = 77,
        seed_tensor: Tensor | None = None, sample_ids: Tensor | None = None, noise: Tensor | None = None,
        trajectory: bool = False, reconstruct_only: bool = False,
    ) -> Tensor:  # fmt: skip
        """settings: (4, N), step sizes, noise scales, lows, highs."""
        fields, sizes, addresses, workspace = self._model(choice, x, weights)
        n_steps = settings.shape[1]
        out = torch.full((n_steps + 1, *x.shape) if trajectory else tuple(x.shape), float("nan"))
        if trajectory:
            out[0] = x
        self._call("chain", fields, sizes, addresses, _pointer(workspace), ctypes.c_int64(x.shape[0]), _pointer(x),
                   n_steps, _pointer(settings), ctypes.c_uint64(seed), _pointer(seed_tensor), _pointer(sample_ids),
                   _pointer(noise), _pointer(out), int(trajectory), int(reconstruct_only))  # fmt: skip
        return out

    def gradient(
        self, choice: Choice, states: Tensor, weights: Sequence[Tensor], settings: Tensor, cotangent: Tensor, *,
        seed: int = 77, sample_ids: Tensor | None = None, noise: Tensor | None = None, noise_gradient: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        fields, sizes, addresses, workspace = self._model(choice, states, weights)
        result = torch.full_like(cotangent, float("nan"))
        by_noise = torch.full_like(states[1:], float("nan")) if noise_gradient else None
        self._call("gradient", fields, sizes, addresses, _pointer(workspace), ctypes.c_int64(cotangent.shape[0]),
                   _pointer(states), settings.shape[1], _pointer(settings), ctypes.c_uint64(seed), _pointer(None),
                   _pointer(sample_ids), _pointer(noise), _pointer(cotangent), _pointer(result),
                   _pointer(by_noise))  # fmt: skip
        return result, by_noise

    def error_gradient(self, choice: Choice, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        fields, sizes, addresses, workspace = self._model(choice, x, weights)
        result = torch.full_like(x, float("nan"))
        self._call("error_gradient", fields, sizes, addresses, _pointer(workspace), ctypes.c_int64(x.shape[0]),
                   _pointer(x), _pointer(result))  # fmt: skip
        return result

    def update(
        self, x: Tensor, reconstruction: Tensor, settings: Tensor, *, seed: int, step: int,
        sample_ids: Tensor | None = None, noise: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        out = torch.full_like(x, float("nan"))
        self._call("update", ctypes.c_int64(x.shape[0]), ctypes.c_int64(x[0].numel()), _pointer(x),
                   _pointer(reconstruction), _pointer(settings), ctypes.c_uint64(seed), _pointer(sample_ids),
                   _pointer(noise), ctypes.c_uint32(step), _pointer(out))  # fmt: skip
        return out

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x rounded to TF32, and its high and low part."""
        out = tuple(torch.full_like(x, float("nan")) for _ in range(3))
        self._library.emulated_operands(ctypes.c_int64(len(x)), _pointer(x), *map(_pointer, out))
        return out

    def noise(self, seed: int, sample_ids: Tensor, step: int, elements: int) -> tuple[Tensor, Tensor]:
        z = torch.full((len(sample_ids), elements), float("nan"))
        words = torch.full((len(sample_ids), 4 * -(-elements // 4)), -1, dtype=torch.int64)
        self._call("noise", ctypes.c_int64(len(sample_ids)), ctypes.c_int64(elements), ctypes.c_uint64(seed),
                   _pointer(sample_ids), ctypes.c_uint32(step), _pointer(z), _pointer(words))  # fmt: skip
        return z, words


class Extension:
    """What the backend uses of ``fastmalade._cuda``, over the emulation: addresses are those of tensors on the CPU."""

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation

    def choice(
        self, device: int, sizes: Sequence[int], batch: int, gradient: bool, form: str, images: int, cluster: int,
        precision: str = "fp32",
    ) -> dict[str, object]:  # fmt: skip
        found = self._choose(sizes, batch, gradient, form, images, cluster, precision)
        return {**vars(found), "form": found.name}

    def langevin_chain(
        self, *, device: int, stream: int, form: str, images: int, cluster: int, batch: int, shape: Sequence[int],
        weights: Sequence[int], workspace: int, x: int, step_sizes: Sequence[float], noise_scales: Sequence[float],
        lows: Sequence[float], highs: Sequence[float], seed: int, seed_pointer: int, sample_ids: int, noise: int,
        out: int, trajectory: bool, reconstruct_only: bool, precision: str = "fp32",
    ) -> None:  # fmt: skip
        choice = self._choose(shape, batch, False, form, images, cluster, precision)
        settings = torch.tensor([list(step_sizes), list(noise_scales), list(lows), list(highs)])
        self._emulation._call(
            "chain", *self._model(choice, shape, weights, workspace), ctypes.c_int64(batch), _address(x),
            len(step_sizes), _pointer(settings), ctypes.c_uint64(seed), _address(seed_pointer), _address(sample_ids),
            _address(noise), _address(out), int(trajectory), int(reconstruct_only),
        )  # fmt: skip

    def chain_gradient(
        self, *, device: int, stream: int, form: str, images: int, cluster: int, batch: int, shape: Sequence[int],
        weights: Sequence[int], workspace: int, states: int, step_sizes: Sequence[float],
        noise_scales: Sequence[float], lows: Sequence[float], highs: Sequence[float], seed: int, seed_pointer: int,
        sample_ids: int, noise: int, cotangent: int, gradient: int, noise_gradient: int, precision: str = "fp32",
    ) -> None:  # fmt: skip
        choice = self._choose(shape, batch, True, form, images, cluster, precision)
        settings = torch.tensor([list(step_sizes), list(noise_scales), list(lows), list(highs)])
        self._emulation._call(
            "gradient", *self._model(choice, shape, weights, workspace), ctypes.c_int64(batch), _address(states),
            len(step_sizes), _pointer(settings), ctypes.c_uint64(seed), _address(seed_pointer), _address(sample_ids),
            _address(noise), _address(cotangent), _address(gradient), _address(noise_gradient),
        )  # fmt: skip

    def _choose(
        self, sizes: Sequence[int], batch: int, gradient: bool, form: str, images: int, cluster: int, precision: str
    ) -> Choice:
        try:
            return self._emulation.choose(
                sizes, batch, gradient=gradient, form="automatic" if form == "auto" else form, images=images,
                cluster=cluster, precision=precision,
            )  # fmt: skip
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    @staticmethod
    def _model(choice: Choice, shape: Sequence[int], weights: Sequence[int], workspace: int) -> tuple:
        fields = (ctypes.c_int * 9)(*vars(choice).values())
        return fields, (ctypes.c_int64 * 5)(*shape), (ctypes.c_void_p * 10)(*weights), _address(workspace)


def _address(value: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(value or None)
