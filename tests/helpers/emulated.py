"""The CUDA kernels compiled for the CPU emulation (kernels/cuda/emulation) and called through ctypes."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import reference64
import torch
from repository import ROOT
from torch import Tensor

SOURCES = ["kernels/cuda/engine.cu", "kernels/cuda/choice.cpp", "kernels/cuda/emulation/driver.cpp"]
FORMS = {"automatic": 0, "digits": 1, "general": 2, "cluster": 3, "tensor": 4}
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


class Choice(ctypes.Structure):
    """How a call is launched, as kernels/cuda/engine.h has it."""

    _fields_ = [(name, ctypes.c_int) for name in ("form", "images", "cluster", "resident", "blocks", "threads",
                                                  "shared_bytes", "packed_floats", "precision")]  # fmt: skip

    @property
    def name(self) -> str:
        return next(name for name, number in FORMS.items() if number == self.form)

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name, _ in self._fields_}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]


# Structs of kernels/cuda/emulation/driver.cpp and kernels/cuda/parameters.h.


class Call(ctypes.Structure):
    _fields_ = [("choice", Choice), ("sizes", ctypes.c_int64 * 5), ("weights", ctypes.c_void_p * 10),
                ("workspace", ctypes.c_void_p), ("batch", ctypes.c_int64)]  # fmt: skip


class Steps(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int), ("numbers", ctypes.c_void_p)]


class Step(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint32),
                *((name, ctypes.c_float) for name in ("step_size", "noise_scale", "low", "high"))]  # fmt: skip


class NoiseSource(ctypes.Structure):
    _fields_ = [("seed", ctypes.c_uint64),
                *((name, ctypes.c_void_p) for name in ("seed_pointer", "sample_ids", "given"))]  # fmt: skip


def _address(value: Tensor | None) -> int | None:
    assert value is None or value.is_contiguous()
    return None if value is None else value.data_ptr()


def _pointer(value: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(value))


def _steps(settings: Tensor) -> Steps:
    return Steps(settings.shape[1], _address(settings))


def _noise(seed: int, seed_tensor: Tensor | None, sample_ids: Tensor | None, given: Tensor | None) -> NoiseSource:
    return NoiseSource(seed, _address(seed_tensor), _address(sample_ids), _address(given))


class Emulation:
    """Functions of kernels/cuda/engine.h on CPU tensors."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("choose", "chain", "forward", "gradient", "error_gradient", "update", "noise"):
            getattr(self._library, f"emulated_{name}").restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function of the driver, structs by their address."""
        by_address = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        error = getattr(self._library, f"emulated_{name}")(*by_address)
        if error is not None:
            raise RuntimeError(error.decode())

    def choose(
        self, sizes: Sequence[int], batch: int, *, gradient: bool = False, device: Sequence[int] = H200,
        form: str = "automatic", images: int = 0, cluster: int = 0, precision: str = "fp32",
    ) -> Choice:  # fmt: skip
        found = Choice()
        self.call("choose", (ctypes.c_int64 * 5)(*sizes), ctypes.c_int64(batch), int(gradient),
                  (ctypes.c_int * 3)(*device), FORMS[form], images, cluster, PRECISIONS[precision], found)  # fmt: skip
        return found

    def _model(self, choice: Choice, shape: Sequence[int], batch: int, weights: Sequence[Tensor]) -> tuple:
        """The call, and the workspace that it points to: NaN, so that a weight that is not packed shows."""
        workspace = torch.full((choice.packed_floats,), float("nan"))  # torch aligns to more than 16 bytes
        sizes = (ctypes.c_int64 * 5)(*shape, weights[0].shape[0], weights[2].shape[0])
        addresses = (ctypes.c_void_p * 10)(*(w.data_ptr() for w in weights))
        return Call(choice, sizes, addresses, _address(workspace), batch), workspace

    def chain(
        self, choice: Choice, x: Tensor, weights: Sequence[Tensor], settings: Tensor, *, seed: int = 77,
        seed_tensor: Tensor | None = None, sample_ids: Tensor | None = None, noise: Tensor | None = None,
        trajectory: bool = False,
    ) -> Tensor:  # fmt: skip
        """settings: (4, N), step sizes, noise scales, lows, highs."""
        call, _workspace = self._model(choice, x.shape[1:], len(x), weights)
        out = torch.full((settings.shape[1] + 1, *x.shape) if trajectory else tuple(x.shape), float("nan"))
        if trajectory:
            out[0] = x
        source = _noise(seed, seed_tensor, sample_ids, noise)
        self.call("chain", call, _pointer(x), _steps(settings), source, _pointer(out), int(trajectory))
        return out

    def forward(self, choice: Choice, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """r(x)"""
        call, _workspace = self._model(choice, x.shape[1:], len(x), weights)
        out = torch.full_like(x, float("nan"))
        self.call("forward", call, _pointer(x), _pointer(out))
        return out

    def gradient(
        self, choice: Choice, states: Tensor, weights: Sequence[Tensor], settings: Tensor, cotangent: Tensor, *,
        seed: int = 77, sample_ids: Tensor | None = None, noise: Tensor | None = None, noise_gradient: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        call, _workspace = self._model(choice, cotangent.shape[1:], len(cotangent), weights)
        result = torch.full_like(cotangent, float("nan"))
        by_noise = torch.full_like(states[1:], float("nan")) if noise_gradient else None
        source = _noise(seed, None, sample_ids, noise)
        self.call("gradient", call, _pointer(states), _steps(settings), source, _pointer(cotangent), _pointer(result),
                  _pointer(by_noise))  # fmt: skip
        return result, by_noise

    def error_gradient(self, choice: Choice, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        call, _workspace = self._model(choice, x.shape[1:], len(x), weights)
        result = torch.full_like(x, float("nan"))
        self.call("error_gradient", call, _pointer(x), _pointer(result))
        return result

    def update(
        self, x: Tensor, reconstruction: Tensor, settings: Tensor, *, seed: int, step: int,
        sample_ids: Tensor | None = None, noise: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        out = torch.full_like(x, float("nan"))
        self.call("update", ctypes.c_int64(x.shape[0]), ctypes.c_int64(x[0].numel()), _pointer(x),
                  _pointer(reconstruction), Step(step, *settings.tolist()), _noise(seed, None, sample_ids, noise),
                  _pointer(out))  # fmt: skip
        return out

    def noise(self, seed: int, sample_ids: Tensor, step: int, elements: int) -> tuple[Tensor, Tensor]:
        z = torch.full((len(sample_ids), elements), float("nan"))
        words = torch.full((len(sample_ids), 4 * -(-elements // 4)), -1, dtype=torch.int64)
        source = _noise(seed, None, sample_ids, None)
        self.call("noise", ctypes.c_int64(len(sample_ids)), ctypes.c_int64(elements), source, ctypes.c_uint32(step),
                  _pointer(z), _pointer(words))  # fmt: skip
        return z, words

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x rounded to TF32, and its high and low part."""
        out = tuple(torch.full_like(x, float("nan")) for _ in range(3))
        self._library.emulated_operands(ctypes.c_int64(len(x)), _pointer(x), *map(_pointer, out))
        return out


class Extension:
    """What the backend uses of ``fastmalade._cuda``, over the emulation: addresses are those of tensors on the CPU."""

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation

    @staticmethod
    def Request(form: str = "auto", images: int = 0, cluster: int = 0, precision: str = "fp32") -> dict:  # noqa: N802
        form = "automatic" if form == "auto" else form
        return {"form": form, "images": images, "cluster": cluster, "precision": precision}

    @staticmethod
    def Steps(*rows: Sequence[float]) -> Tensor:  # noqa: N802
        return torch.tensor([list(row) for row in rows])

    Step = Step

    @staticmethod
    def NoiseSource(  # noqa: N802
        seed: int = 0, seed_pointer: int = 0, sample_ids: int = 0, given: int = 0
    ) -> NoiseSource:
        return NoiseSource(seed, seed_pointer or None, sample_ids or None, given or None)

    def Call(  # noqa: N802
        self, *, device: int, stream: int, request: dict, gradient: bool, batch: int, shape: Sequence[int],
        weights: Sequence[int],
    ) -> SimpleNamespace:  # fmt: skip
        try:
            choice = self._emulation.choose(shape, batch, gradient=gradient, **request)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        call = Call(choice, (ctypes.c_int64 * 5)(*shape), (ctypes.c_void_p * 10)(*weights), None, batch)
        return SimpleNamespace(call=call, packed_floats=choice.packed_floats)

    def choice(self, device: int, shape: Sequence[int], batch: int, gradient: bool, request: dict) -> dict[str, object]:
        made = self.Call(device=device, stream=0, request=request, gradient=gradient, batch=batch, shape=shape,
                         weights=[0] * 10)  # fmt: skip
        return {**made.call.choice.as_dict(), "form": made.call.choice.name}

    def langevin_chain(
        self, made: SimpleNamespace, workspace: int, *, x: int, steps: Tensor, noise: NoiseSource, out: int,
        trajectory: bool,
    ) -> None:  # fmt: skip
        made.call.workspace = workspace
        self._emulation.call("chain", made.call, ctypes.c_void_p(x), _steps(steps), noise, ctypes.c_void_p(out),
                             int(trajectory))  # fmt: skip

    def chain_gradient(
        self, made: SimpleNamespace, workspace: int, *, states: int, steps: Tensor, noise: NoiseSource, cotangent: int,
        gradient: int, noise_gradient: int,
    ) -> None:  # fmt: skip
        made.call.workspace = workspace
        addresses = (ctypes.c_void_p(address or None) for address in (cotangent, gradient, noise_gradient))
        self._emulation.call("gradient", made.call, ctypes.c_void_p(states), _steps(steps), noise, *addresses)

    def autoencoder_forward(self, made: SimpleNamespace, workspace: int, *, x: int, out: int) -> None:
        made.call.workspace = workspace
        self._emulation.call("forward", made.call, ctypes.c_void_p(x), ctypes.c_void_p(out))

    def reconstruction_error_gradient(self, made: SimpleNamespace, workspace: int, *, x: int, gradient: int) -> None:
        made.call.workspace = workspace
        self._emulation.call("error_gradient", made.call, ctypes.c_void_p(x), ctypes.c_void_p(gradient))

    def langevin_update(
        self, device: int, stream: int, *, batch: int, elements: int, x: int, reconstruction: int, step: Step,
        noise: NoiseSource, out: int,
    ) -> None:  # fmt: skip
        self._emulation.call("update", ctypes.c_int64(batch), ctypes.c_int64(elements), ctypes.c_void_p(x),
                             ctypes.c_void_p(reconstruction), step, noise, ctypes.c_void_p(out))  # fmt: skip

    def standard_normal(
        self, device: int, stream: int, *, batch: int, elements: int, noise: NoiseSource, step: int, z: int, words: int
    ) -> None:
        self._emulation.call("noise", ctypes.c_int64(batch), ctypes.c_int64(elements), noise, ctypes.c_uint32(step),
                             ctypes.c_void_p(z or None), ctypes.c_void_p(words or None))  # fmt: skip
