"""Cases of same_bits.py about chains: sizes, batches, threads, arguments, budgets and operators of every backend."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from same_bits_cases import (
    SEED,
    Cases,
    UserModule,
    autoencoder,
    defined,
    normals,
    randomised,
    uniforms,
    value_and_gradient,
)
from torch import Tensor, nn

import fastmalade
from fastmalade import Autoencoder, ChainConfig, Purifier, reference

# Every count of whole groups, fours and single images that the forms of the CPU kernels split a batch into.
BATCHES = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64)
# (C, H, W) and hidden channels: Table 8's own, colour, a small image, and channel counts that fill no vector.
MODELS = (
    ((1, 28, 28), (10, 25)),
    ((3, 32, 32), (10, 25)),
    ((1, 8, 12), (10, 25)),
    ((1, 28, 28), (4, 9)),
    ((2, 4, 20), (17, 35)),
)


def forced_form(form: str, x: Tensor, weights: Sequence[Tensor], bounds: tuple[float, float]) -> list[Tensor]:
    """r(x), the chain and its gradient by one form of the CPU kernels; to be edited where their calls change."""
    low, high = ((bound,) * 3 for bound in bounds)
    steps, noise = ((0.3, 0.25, 0.2), (0.1, 0.0, 0.05), low, high), (SEED, None, None)
    settings: Any
    options: Any = {"form": form}
    try:
        values = importlib.import_module("fastmalade.backends.values")
        settings = (x, weights, values.Steps(*steps), values.NoiseSource(*noise))
    except ImportError:  # before these values, every number was an argument of its own
        settings, options = (x, weights, *steps), {"seed": SEED, "sample_ids": None, **options}
    chain = defined("langevin_chain", "backends/cpu")(*settings, **options)
    gradient = defined("chain_gradient", "backends/cpu")
    forward = defined("autoencoder_forward", "backends/cpu")
    return [forward(x, weights, form=form), chain, gradient(normals(x.shape), *settings, **options)]


def chain_sizes(cases: Cases, backend: str, models: Any, batches: Sequence[int], threads: Sequence[int]) -> None:
    """Forward and gradient of a Purifier for every size, batch and number of threads."""
    config = ChainConfig(3, 0.3, 0.1, clamp="every_step")
    for (shape, hidden), batch, count in itertools.product(models, batches, threads):
        purifier = Purifier(autoencoder(shape, hidden), config, backend=backend)
        name, x = f"{shape} {hidden} batch {batch} threads {count}", uniforms(batch, *shape)
        cases.add(f"{name}: forward", purifier, x, seed=SEED, threads=count)
        cases.add(f"{name}: gradient", value_and_gradient, purifier, x, seed=SEED, threads=count)
        cases.add(f"{name}: purify", purifier.purify, x.numpy(), seed=SEED, threads=count)


def chain_arguments(cases: Cases, name: str, backend: str, r: Any, x: Tensor, budgets: Sequence[int | None]) -> None:
    """One r(x) under every kind of argument of ``langevin_chain``, on five images."""
    a, d = [0.3, 0.25, 0.2], [0.1, 0.0, 0.05]
    noise = normals((3, *x.shape)).to(x.dtype)
    common: dict[str, Any] = {"autoencoder": r, "step_sizes": a, "noise_scales": d, "backend": backend}
    seeded, given = common | {"seed": SEED}, common | {"noise": noise}
    ids = [2**40, 3, 7, 2**63 + 1, 5][: len(x)]
    kinds: dict[str, dict[str, Any]] = {
        "no clamp": seeded | {"seed": 2**64 - 1},
        "clamp every": seeded | {"clamp": (0.2, 0.8)},
        "clamp final": seeded | {"clamp": (0.2, 0.8), "clamp_steps": "final"},
        "noise given": given | {"clamp": (0.0, 1.0)},
        "ids": seeded | {"sample_ids": ids},
        "no noise": common | {"noise_scales": [0.0] * 3},
        "no steps": common | {"step_sizes": [], "noise_scales": []},
    }
    for kind, options in kinds.items():
        cases.add(f"{name}: {kind}, forward", fastmalade.langevin_chain, x, **options)
        cases.add(f"{name}: {kind}, trajectory", fastmalade.langevin_trajectory, x, **options)
        cases.add(f"{name}: {kind}, gradient", value_and_gradient, fastmalade.langevin_chain, x, **options)
    for layout, images in (("transposed", x.mT.contiguous().mT), ("strided", torch.cat([x, -x], 3)[..., : x.shape[3]])):
        cases.add(f"{name}: {layout}, forward", fastmalade.langevin_chain, images, **seeded)
        cases.add(f"{name}: {layout}, gradient", value_and_gradient, fastmalade.langevin_chain, images, **seeded)
    # A chain long enough for budgets to make steps run again.
    longer = common | {"step_sizes": [0.2] * 7, "noise_scales": [0.05] * 7, "seed": 3, "clamp": (0.0, 1.0)}
    leaf = noise.clone().requires_grad_()
    noisy = given | {"noise": leaf, "clamp": (0.0, 1.0)}
    trained = list(r.parameters()) if isinstance(r, nn.Module) else []
    for budget, threads in itertools.product(budgets, (1, 2)):
        where = f"{name}: budget {budgets.index(budget)} threads {threads}"
        limited: dict[str, Any] = longer | {"max_bytes": budget, "threads": threads}
        chain = fastmalade.langevin_chain
        cases.add(f"{where}, images", value_and_gradient, chain, x, **limited)
        cases.add(f"{where}, noise", value_and_gradient, chain, x, leaf, **noisy, max_bytes=budget, threads=threads)
        for parameter in trained:
            parameter.requires_grad_(True)
        cases.add(f"{where}, weights", value_and_gradient, chain, x, *trained, **limited)
        for parameter in trained:
            parameter.requires_grad_(False)


def chain_configs(cases: Cases, backend: str, model: Autoencoder, x: Tensor) -> list[int | None]:
    """Schedules and clamps of ChainConfig, and plans; returns the budgets that ``chain_arguments`` should try."""
    for clamp, decay in itertools.product(("final", "every_step", "none"), (0.0, 0.7)):
        config = ChainConfig(4, 0.3, 0.1, decay=decay, offset=2.0, clamp=clamp)  # type: ignore[arg-type]
        purifier = Purifier(model, config, backend=backend)
        name = f"config {clamp} decay {decay}"
        cases.add(f"{name}: schedule", config.schedule)
        cases.add(f"{name}: forward", purifier, x, seed=1, sample_ids=[4, 0, 2, 9, 1])
        cases.add(f"{name}: trajectory", purifier.trajectory, x, seed=1)
        cases.add(f"{name}: gradient", value_and_gradient, purifier, x, seed=1)
        cases.add(f"{name}: purify", purifier.purify, x, seed=1, n_steps=2)
    changing = Purifier(autoencoder(x.shape[1:], model.hidden_channels), ChainConfig(2), backend=backend)
    cases.add("changed weights", changed_weights, changing, x)
    planned = Purifier(model, ChainConfig(7), backend=backend)
    torch.set_num_threads(1)
    least = planned.gradient_plan(x).least_bytes
    budgets = [None, least, 2 * least, 4 * least, 2**40]
    for index, threads in itertools.product(range(len(budgets)), (1, 2)):
        budget = None if budgets[index] is None else budgets[index] * threads
        cases.add(f"plan {index} threads {threads}", planned.gradient_plan, x, max_bytes=budget, threads=threads)
    # Two threads of a native backend each keep their own.
    return [None, *(2 * least * factor for factor in (1, 2, 4)), 2**40]


def changed_weights(purifier: Purifier, x: Tensor) -> list[Tensor]:
    """Results before and after the parameters change in place and are replaced: nothing kept of them may be stale."""
    results = [purifier(x, seed=1)]
    for change in range(3):
        for parameter in purifier.autoencoder.parameters():
            if change == 0:
                parameter.mul_(0.9)
            elif change == 1:
                parameter.data = parameter.data + 0.01
            else:
                parameter.data.numpy()[...] *= 1.1
        results.append(purifier(x, seed=1))
    return results


def operators(cases: Cases, backend: str, model: Autoencoder, x: Tensor) -> None:
    """The registered operators, the noise, and products with one Jacobian."""
    ops, weights = torch.ops.fastmalade, list(model.weights())
    seed, ids, cotangent = torch.tensor([5]), torch.arange(len(x)) * 3, normals(x.shape)
    settings: Any = ([0.3, 0.2], [0.1, 0.05], [0.0, 0.0], [1.0, 1.0])
    cases.add("op chain", ops.langevin_chain, x, weights, *settings, seed, ids, None, backend, None)
    backward: Any = (cotangent, x, weights, *settings, seed, ids, None, backend, None)
    for wanted in itertools.product((False, True), repeat=2):
        cases.add(f"op chain backward {wanted}", ops.langevin_chain_backward, *backward, *wanted)
    cases.add("op normal", ops.standard_normal, seed, ids, 2, x, backend)
    update: Any = {"reconstruction": cotangent, "step_size": 0.2, "noise_scale": 0.1, "low": 0.1, "high": 0.9}
    update |= {"seed": seed, "sample_ids": ids, "step": 2, "noise": None, "backend": backend}
    cases.add("op update", value_and_gradient, ops.langevin_update, x, **update)
    for shape in ((1, 28, 28), (5,), (3, 7, 9), (0,)):
        cases.add(f"normal {shape}", fastmalade.standard_normal, SEED, [0, 5, 2**63], 7, shape, backend=backend)
    for r in (model, UserModule(x.shape[1])):
        randomised(r)
        kind = type(r).__name__
        cases.add(f"vjp {kind}", fastmalade.autoencoder_vjp, r, x, cotangent, backend=backend)
        cases.add(f"error gradient {kind}", fastmalade.reconstruction_error_gradient, r, x, backend=backend)


def whole_backend(cases: Cases, backend: str, models: Sequence[Any], batch: int = 5) -> None:
    """Everything of a chain but its sizes."""
    for shape, hidden in models:
        model, x = autoencoder(shape, hidden), uniforms(batch, *shape)
        part = Cases()
        budgets = chain_configs(part, backend, model, x)
        operators(part, backend, model, x)
        chain_arguments(part, "table 8", backend, model, x, budgets)
        # The update takes any size; here one that no vector divides.
        other = uniforms(batch, shape[0], 7, 9)
        chain_arguments(part, "module", backend, randomised(UserModule(shape[0])), other, (None, 40_000, 10**6))
        chain_arguments(part, "bfloat16 callable", backend, lambda y: (0.9 * y).bfloat16(), other, (None,))
        cases.found |= {f"{shape} {name}": entry for name, entry in part.found.items()}


def native(cases: Cases) -> None:
    """The CPU kernels with the instruction set of the environment."""
    try:
        fastmalade.standard_normal(0, [0], 0, (4,), backend="cpu")
    except fastmalade.BackendUnavailableError as error:
        cases.left_out = str(error)
        return
    chain_sizes(cases, "cpu", MODELS, BATCHES, (1, 2))
    whole_backend(cases, "cpu", MODELS[:3])
    for (shape, hidden), form, batch in itertools.product(MODELS, ("throughput", "quad", "latency"), (1, 5, 18)):
        model, x = autoencoder(shape, hidden), uniforms(batch, *shape)
        for bounds in ((0.1, 0.9), (-math.inf, math.inf)):
            name = f"form {form} {shape} {hidden} batch {batch} bounds {bounds}"
            cases.add(name, forced_form, form, x, model.weights(), bounds)


def plain_torch(cases: Cases) -> None:
    """The backend "torch", also in float64, and the reference that everything is tested against."""
    chain_sizes(cases, "torch", MODELS, (0, 1, 3, 8), (1, 2))
    whole_backend(cases, "torch", MODELS[:3:2])
    (shape, hidden), ids = MODELS[2], torch.tensor([0, 5, -1])
    model = autoencoder(shape, hidden).double()
    x = uniforms(3, *shape).double()
    chain_arguments(cases, "float64", "torch", model, x, (None, 10**6))
    cases.add("words", reference.philox_words, SEED, ids, 3, 30)
    cases.add("normals", reference.standard_normal, SEED, ids, 3, (2, 5), dtype=torch.float64)
    activations = reference.autoencoder_activations(x, model.weights())
    cases.add("activations", list, activations)
    cases.add("vjp", reference.autoencoder_vjp, x, activations, model.weights(), weight_gradients=True)
    cases.add("update", reference.langevin_update, x, -x, 0.2, 0.1, 0.0, 1.0, seed=3, sample_ids=ids, step=4)
    options: Any = {"lows": [0.0] * 2, "highs": [1.0] * 2, "seed": 3, "trajectory": True}
    cases.add("chain", reference.langevin_chain, x, model, [0.3, 0.2], [0.1, 0.1], **options)


def interpreted_triton(cases: Cases) -> None:
    """The Triton kernels in Triton's interpreter: slow, so on the smallest images."""
    shape, hidden = (1, 4, 4), (2, 3)
    model, x = autoencoder(shape, hidden), uniforms(2, *shape)
    purifier = Purifier(model, ChainConfig(2, 0.3, 0.1, clamp="every_step"), backend="triton")
    for precision in ("fp32", "tf32"):
        purifier.precision = precision
        cases.add(f"{precision}: gradient", value_and_gradient, purifier, x, seed=SEED)
        cases.add(f"{precision}: trajectory", purifier.trajectory, x, seed=SEED, sample_ids=[3, 2**63])
    cases.add("normal", fastmalade.standard_normal, SEED, [0, 2**63], 7, (9,), backend="triton")
    user = Purifier(randomised(UserModule()), purifier.chain, backend="triton")
    cases.add("module", value_and_gradient, user, x, seed=SEED)
