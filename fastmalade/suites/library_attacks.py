"""Attacks without a ball, most of them foolbox's: what they make is judged like everything else, by fresh noise.

Each takes a gradient or an answer from one draw of the noise at a time, as its library does; none averages over draws.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import geometry
from fastmalade.attacks import SeededCalls
from fastmalade.models.modes import evaluation_mode
from fastmalade.seeds import derive_seed
from fastmalade.suites.subject import AsModule, Subject
from fastmalade.suites.suite import AttackSpec

# Images handed to foolbox at once: it makes one call for all of them.
_BATCH = 100


def library_attack_missing(spec: AttackSpec) -> str | None:
    """None, or why an attack cannot run here."""
    if spec.kind != "salt-and-pepper" and importlib.util.find_spec("foolbox") is None:
        return "foolbox is not installed: pip install 'fastmalade[attacks]'"
    return None


def library_attack(
    subject: Subject, images: Tensor, labels: Tensor, ids: Tensor, spec: AttackSpec, seed: int
) -> Tensor:
    """Attack images (n, C, H, W) with labels and ids (n,); those it could not fool come back as it left them.

    ``spec.options``: "cw" has learning_rate and constant (one search step), "ead" also beta and search_steps,
    "salt-and-pepper" share, the part of the pixels that become black or white.
    """
    if spec.kind == "salt-and-pepper":
        return _salt_and_pepper(subject, images, ids, spec.options["share"], seed)
    parts = []
    with evaluation_mode(subject.model):
        for start in range(0, len(images), _BATCH):
            part = slice(start, start + _BATCH)
            call_seed = derive_seed(seed, int(ids[start]))
            model = SeededCalls(subject.defended, call_seed) if subject.defended is not None else AsModule(subject)
            with torch.random.fork_rng():
                torch.manual_seed(call_seed % 2**63)
                parts.append(_by_foolbox(model.eval(), subject.value_range, images[part], labels[part], spec))
    return torch.cat(parts).clamp(*subject.value_range)


def _by_foolbox(
    model: nn.Module, value_range: tuple[float, float], images: Tensor, labels: Tensor, spec: AttackSpec
) -> Tensor:
    import foolbox

    attack = _FOOLBOX[spec.kind](spec.steps, spec.options)
    wrapped = foolbox.PyTorchModel(model, bounds=value_range, device=images.device)
    if spec.kind != "boundary":
        _, made, _ = attack(wrapped, images, labels, epsilons=None)
        found: Tensor = made.detach()
        return found
    # It starts from a wrong answer, of which foolbox finds one for all images of a call or raises: one by one.
    rows = []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        try:
            _, made, _ = attack(wrapped, image, label, epsilons=None)
            rows.append(made.detach())
        except ValueError as error:
            if "init_attack failed" not in str(error):
                raise
            rows.append(image)
    return torch.cat(rows)


def _carlini_wagner(steps: int, options: Mapping[str, float]) -> Any:
    import foolbox

    return foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=steps, stepsize=options["learning_rate"], initial_const=options["constant"]
    )  # fmt: skip


def _elastic_net(steps: int, options: Mapping[str, float]) -> Any:
    import foolbox

    return foolbox.attacks.EADAttack(
        binary_search_steps=int(options["search_steps"]), steps=steps, initial_stepsize=options["learning_rate"],
        initial_const=options["constant"], regularization=options["beta"],
    )  # fmt: skip


def _boundary(steps: int, options: Mapping[str, float]) -> Any:
    import foolbox

    return foolbox.attacks.BoundaryAttack(steps=steps, tensorboard=False)


_FOOLBOX: dict[str, Callable[[int, Mapping[str, float]], Any]] = {
    "cw": _carlini_wagner, "ead": _elastic_net, "boundary": _boundary,
}  # fmt: skip


def _salt_and_pepper(subject: Subject, images: Tensor, ids: Tensor, share: float, seed: int) -> Tensor:
    """A share of the pixels, chosen at random, black or white in all channels (001 section 2.1.3)."""
    low, high = subject.value_range
    plane = images[:, :1]
    order = geometry.normals(derive_seed(seed, 0), ids, 0, plane).flatten(1).argsort(1).argsort(1)
    chosen = (order < round(share * order.shape[1])).view_as(plane)
    white = geometry.normals(derive_seed(seed, 1), ids, 0, plane) > 0
    return torch.where(chosen, torch.where(white, high, low).to(images), images)
