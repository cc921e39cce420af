"""``check_gradient``: is the gradient of a defence its derivative, and is any of it masked?"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import reference
from fastmalade.checks import check_count
from fastmalade.defenses.base import Defense
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.defenses.purifier import Purifier
from fastmalade.gradcheck.report import GradientCheck, GradientReport, Status
from fastmalade.models.modes import evaluation_mode
from fastmalade.models.table8 import is_native_autoencoder
from fastmalade.seeds import check_seed, derive_seed

# Lengths of the finite differences and the relative error allowed, by dtype. Where the longer of two lengths straddles
# a kink of a clamp or a ReLU, the shorter one rarely does; a wrong gradient is wrong at both.
_DIFFERENCES = {torch.float64: ((1e-6, 1e-7), 1e-4), torch.float32: ((1e-2, 3e-3), 5e-2)}
# Well above the rounding of float32, well below a mistake worth finding. The Table 8 autoencoder is smooth; in other
# models rounding crosses kinks, where the gradient jumps.
_SMOOTH_TOLERANCE, _KINKED_TOLERANCE = 1e-4, 1e-2
_ZERO_LIMIT = 0.5


def check_gradient(
    model: Callable[..., Tensor],
    x: Tensor,
    *,
    seed: int = 0,
    directions: int = 4,
    dtype: torch.dtype = torch.float64,
    reseed: Callable[[], None] | None = None,
) -> GradientReport:
    """Check the gradient of a purifier, a defended classifier, or any other defence.

    A fixed random cotangent for each image turns the outputs into scalar functions. The checks are:

    - "repeatable": with the same noise the same output; otherwise the other checks mean nothing.
    - "derivative": the gradient along random directions, and along itself, against central differences with the same
      noise. BPDA and blind gradients fail, as they are not the derivative; that is fine if you asked for them.
    - "float32 gradient": the gradient in the dtype and on the backend of ``x`` against the one in float64.
    - "rows": the gradient of the last image alone against the one in the batch; batched EOT relies on it.
    - "budgets": the gradient under memory budgets (``max_bytes``) that make steps run again, against the one without a
      budget, bit for bit. Only for purifiers with a Table 8 autoencoder, and for classifiers behind one.
    - "finite" and "zero": the shares of components that are NaN or infinite, and exactly 0: signs of masked gradients.
    - "noise": whether calls without a seed differ, and whether reseeding torch's global generator, as attack libraries
      do, makes them repeat.
    - "spread": cosine between the gradients for two draws of the noise; if it is far from 1, attacks need EOT.

    Args:
        model: :class:`fastmalade.Purifier`, :class:`fastmalade.DefendedClassifier`, or any callable
            (B, C, H, W) -> (B, ...). Modules run in eval mode and are not changed; a copy on the "torch" backend
            computes in float64. A callable that is not a module has to take float64, or set ``dtype``.
        x: float32 or float64 (B, C, H, W), B >= 1, in the range of the model, and not at its bounds if the model starts
            with a clamp. Never written to.
        seed: of noise, cotangent and directions.
        directions: random directions per image, at least 1.
        dtype: of the finite differences: torch.float64, or torch.float32 (coarse) for a model that cannot do better.
        reseed: for a callable with noise of its own: called before each evaluation to fix that noise. By default
            torch's global generator is seeded, and restored afterwards.

    Returns:
        One entry per check; ``print`` it, or look at ``passed``.

    Raises:
        TypeError, ValueError: a wrong argument, a model that cannot run in ``dtype``, or one whose output does not
            depend on its input.
    """
    _check_arguments(model, x, dtype)
    check_count("directions", directions, 1)
    probe = _Probe(model, check_seed(seed), reseed)
    x = x.detach()
    with evaluation_mode(model), torch.no_grad():
        output = probe.value(x)
        checks = [_repeatable(probe, x, output)]
        cotangent = _normals(derive_seed(seed, 1), output.double())
        gradient = probe.gradient(x, cotangent)
        precise = probe.in_dtype(dtype)
        exact = precise.gradient(x.to(dtype), cotangent)
        checks.append(_derivative(precise, x.to(dtype), exact, cotangent, derive_seed(seed, 2), directions))
        if x.dtype != dtype:
            value_error = _relative_error(output.double(), precise.value(x.to(dtype)).double())
            checks.append(_float32(probe, gradient, exact, value_error))
        if len(x) > 1:
            checks.append(_rows(probe, x, gradient, cotangent))
        if probe.smooth_purifier() is not None:
            checks.append(_budgets(probe, x, gradient, cotangent))
        checks += [_finite(gradient), _zero(gradient)]
        checks += _noise(probe, x, gradient, cotangent)
    return GradientReport(type(model).__name__, tuple(x.shape), tuple(checks))


class _Probe:
    """A model, evaluated with the same noise each time."""

    def __init__(self, model: Callable[..., Tensor], seed: int, reseed: Callable[[], None] | None) -> None:
        self.model = model
        self.seed = seed
        self.reseed = reseed
        self.seeded = isinstance(model, (Defense, DefendedClassifier))
        self.tolerance = _SMOOTH_TOLERANCE if self.smooth_purifier() is model else _KINKED_TOLERANCE

    def smooth_purifier(self) -> Purifier | None:
        """The model, or the purifier in it, if it has a Table 8 autoencoder and gradients go through it; else None."""
        model = self.model
        purifier = model.purifier if isinstance(model, DefendedClassifier) and model.gradient == "unrolled" else model
        if isinstance(purifier, Purifier) and is_native_autoencoder(purifier.autoencoder):
            return purifier
        return None

    def in_dtype(self, dtype: torch.dtype) -> _Probe:
        """The same model with parameters of ``dtype``."""
        model = self.model
        if isinstance(model, nn.Module):
            model = copy.deepcopy(model).to(dtype)
            purifier = model.purifier if isinstance(model, DefendedClassifier) else model
            if isinstance(purifier, Purifier):
                purifier.backend = "torch"
        return _Probe(model, self.seed, self.reseed)

    def value(self, x: Tensor, *, seed: int | None = None, first_id: int = 0) -> Tensor:
        """Output (B, ...) for the noise of ``seed``; the images have ids first_id, first_id + 1, ..."""
        number = self.seed if seed is None else seed
        with self._noise(number):
            if self.seeded:
                ids = torch.arange(first_id, first_id + len(x), device=x.device)
                output = self.model(x, seed=number, sample_ids=ids)
            else:
                output = self._call(x)
        if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(x):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model: expected an output of shape ({len(x)}, ...), got {got}")
        return output

    def fresh(self, x: Tensor) -> Tensor:
        """Output for the noise that the model draws without a seed."""
        with torch.no_grad():
            return self._call(x)

    def scalars(self, x: Tensor, cotangent: Tensor, **options: Any) -> Tensor:
        """Output times cotangent, summed per image: (B,) in the dtype of ``cotangent``."""
        return (self.value(x, **options).to(cotangent.dtype) * cotangent).flatten(1).sum(1)

    def gradient(self, x: Tensor, cotangent: Tensor, **options: Any) -> Tensor:
        """Gradient of :meth:`scalars` with respect to ``x``."""
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            total = self.scalars(leaf, cotangent, **options).sum()
            if not total.requires_grad:
                raise ValueError("model: expected an output that depends on x for autograd, got a detached one")
            (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if gradient is None:
            raise ValueError("model: expected an output that depends on x for autograd, got an independent one")
        return gradient

    def _call(self, x: Tensor) -> Tensor:
        try:
            return self.model(x)
        except (RuntimeError, TypeError) as error:
            if x.dtype != torch.float64:
                raise
            raise ValueError(
                f"model: expected one that can run in float64, got {type(error).__name__}: {error}; "
                "dtype=torch.float32 checks coarsely"
            ) from error

    @contextlib.contextmanager
    def _noise(self, seed: int) -> Iterator[None]:
        if self.seeded:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed % 2**63)
            if self.reseed is not None:
                self.reseed()
            yield


def _repeatable(probe: _Probe, x: Tensor, output: Tensor) -> GradientCheck:
    error = _relative_error(probe.value(x).double(), output.double())
    detail = "same output for the same noise" if error <= 1e-6 else "output changes under fixed noise: give reseed="
    return _limited("repeatable", error, 1e-6, detail)


def _derivative(
    probe: _Probe, x: Tensor, gradient: Tensor, cotangent: Tensor, seed: int, directions: int
) -> GradientCheck:
    lengths, limit = _DIFFERENCES[x.dtype]
    ids = torch.arange(len(x), device=x.device)
    chosen = [
        reference.standard_normal(seed, ids, k, x.shape[1:], dtype=x.dtype, device=x.device) for k in range(directions)
    ]
    errors, sizes = [], []
    for raw in [*chosen, gradient]:
        direction = raw / _column(raw.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny), x)
        predicted = (gradient * direction).flatten(1).sum(1).double()
        found = torch.stack([_central(probe, x, direction, cotangent, length) for length in lengths])
        errors.append((found - predicted).abs().amin(0))
        sizes.append(torch.maximum(found.abs().amin(0), predicted.abs()))
    error = _rms(torch.stack(errors)) / max(_rms(torch.stack(sizes)), torch.finfo(torch.float64).tiny)
    stated = isinstance(probe.model, (Defense, DefendedClassifier))
    mode = getattr(probe.model, "gradient", "unrolled") if stated else "unrolled"
    if error <= limit:
        detail = f"agrees with finite differences in {str(x.dtype).removeprefix('torch.')}"
    elif mode != "unrolled":
        detail = f"not the derivative: gradient={mode!r} replaces it on purpose"
    else:
        detail = "not the derivative"
    return _limited("derivative", error, limit, detail)


def _central(probe: _Probe, x: Tensor, direction: Tensor, cotangent: Tensor, length: float) -> Tensor:
    with torch.no_grad():
        ahead = probe.scalars(x + length * direction, cotangent)
        behind = probe.scalars(x - length * direction, cotangent)
    return (ahead - behind) / (2 * length)


def _float32(probe: _Probe, gradient: Tensor, exact: Tensor, value_error: float) -> GradientCheck:
    error = _relative_error(gradient.double(), exact.double())
    name = "float32 gradient"
    if not probe.seeded and value_error > _KINKED_TOLERANCE:
        # torch draws other normals in another dtype: the two gradients are not those of the same function.
        return GradientCheck(name, "INFO", error, None, "not comparable: the model's noise differs between dtypes")
    return _limited(name, error, probe.tolerance, "against float64, worst image")


def _rows(probe: _Probe, x: Tensor, gradient: Tensor, cotangent: Tensor) -> GradientCheck:
    last = len(x) - 1
    value = probe.value(x)[-1:]
    alone_value = probe.value(x[-1:], first_id=last)
    if not probe.seeded and _relative_error(alone_value.double(), value.double()) > 1e-4:
        return GradientCheck("rows", "INFO", None, None, "not comparable: the output depends on the batch or its noise")
    alone = probe.gradient(x[-1:], cotangent[-1:], first_id=last)
    error = _relative_error(alone.double(), gradient[-1:].double())
    return _limited("rows", error, probe.tolerance, "last image alone against the batch")


def _budgets(probe: _Probe, x: Tensor, gradient: Tensor, cotangent: Tensor) -> GradientCheck:
    # A copy, as the budget of the caller's model must not change.
    model = copy.deepcopy(probe.model)
    other = _Probe(model, probe.seed, probe.reseed)
    purifier = other.smooth_purifier()
    assert purifier is not None
    chains = model.n_chains if isinstance(model, DefendedClassifier) else 1
    images = x.new_empty((len(x) * chains, *x.shape[1:]), device="meta")
    full = purifier.gradient_plan(images, max_bytes=2**62)
    budgets = [full.least_bytes, (full.least_bytes + full.n_bytes) // 2]
    error, steps = 0.0, []
    for purifier.max_bytes in budgets:
        steps.append(purifier.gradient_plan(images).forward_steps)
        found = other.gradient(x, cotangent)
        error = max(error, 0.0 if torch.equal(found, gradient) else _relative_error(found.double(), gradient.double()))
    return _limited("budgets", error, 0.0, f"{full.forward_steps} forward steps against {steps[0]} and {steps[1]}")


def _finite(gradient: Tensor) -> GradientCheck:
    share = float((~torch.isfinite(gradient)).double().mean())
    return _limited("finite", share, 0.0, "share of components that are NaN or infinite")


def _zero(gradient: Tensor) -> GradientCheck:
    zero = (gradient == 0).flatten(1)
    share, dead = float(zero.double().mean()), int(zero.all(1).sum())
    if dead:
        return GradientCheck("zero", "FAIL", share, _ZERO_LIMIT, f"no gradient at all for {dead} of {len(zero)} images")
    return _limited("zero", share, _ZERO_LIMIT, "share of components that are exactly 0")


def _noise(probe: _Probe, x: Tensor, gradient: Tensor, cotangent: Tensor) -> list[GradientCheck]:
    with torch.random.fork_rng():
        first, second = probe.fresh(x), probe.fresh(x)
        torch.manual_seed(0)
        replayed = probe.fresh(x)
        torch.manual_seed(0)
        repeats = torch.equal(replayed, probe.fresh(x))
    random = not torch.equal(first, second)
    if not random:
        expected = _expects_noise(probe.model)
        detail = "deterministic" if not expected else "the model has noise, but calls without a seed repeat it"
        return [GradientCheck("noise", "FAIL" if expected else "INFO", None, None, detail)]
    if repeats:
        status: Status = "FAIL" if probe.seeded else "INFO"
        detail = "from torch's global generator: libraries that reseed it repeat the noise, and EOT averages nothing"
    else:
        status = "PASS" if probe.seeded else "INFO"
        detail = "fresh at every call, whatever torch's global generator does"
    other = probe.gradient(x, cotangent, seed=derive_seed(probe.seed, 3)).double().flatten(1)
    own = gradient.double().flatten(1)
    cosine = float(torch.nn.functional.cosine_similarity(own, other).mean())
    return [
        GradientCheck("noise", status, None, None, detail),
        GradientCheck("spread", "INFO", cosine, None, "cosine between the gradients for two draws of the noise"),
    ]


def _expects_noise(model: object) -> bool:
    if isinstance(model, DefendedClassifier):
        return model.seed is None and _expects_noise(model.purifier)
    return isinstance(model, Defense) and model.is_random


def _check_arguments(model: object, x: object, dtype: torch.dtype) -> None:
    if not callable(model):
        raise TypeError(f"model: expected a module or callable, got {type(model).__name__}")
    if dtype not in _DIFFERENCES:
        raise ValueError(f"dtype: expected torch.float64 or torch.float32, got {dtype}")
    if not isinstance(x, Tensor) or x.dtype not in _DIFFERENCES:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a float32 or float64 tensor, got {got}")
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"x: expected shape (B, C, H, W) with at least one image, got {tuple(x.shape)}")


def _limited(name: str, value: float, limit: float, detail: str) -> GradientCheck:
    # Written so that NaN fails.
    return GradientCheck(name, "PASS" if value <= limit else "FAIL", value, limit, detail)


def _relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest over images of |found - exact| / |exact|, in L2."""
    difference = (found - exact).flatten(1).norm(dim=1)
    size = exact.flatten(1).norm(dim=1)
    return float(torch.where(difference == 0, 0.0, difference / size).max())


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.double().square().mean()))


def _normals(seed: int, like: Tensor) -> Tensor:
    ids = torch.arange(len(like), device=like.device)
    shape: Sequence[int] = like.shape[1:]
    return reference.standard_normal(seed, ids, 0, shape, dtype=like.dtype, device=like.device)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1)))
