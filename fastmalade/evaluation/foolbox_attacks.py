"""Linf attacks through foolbox, in chunks of fixed size so that a long run can be resumed and repeated exactly."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastmalade.attacks.masking import WatchedGradients

AttackName = Literal["fgsm", "pgd"]

# The random starts of one chunk follow from (seed, chunk index), so the chunk size is part of what a seed means.
ATTACK_CHUNK = 250


def foolbox_attack(attack: AttackName, *, steps: int, step_size: float, random_start: bool = True) -> Any:
    """The foolbox attack object: "fgsm" (paper 000, eq. 1) or "pgd" (projected gradient, paper 001, B.1.1).

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: foolbox is not installed.
    """
    if attack not in get_args(AttackName):
        raise ValueError(f"attack: expected one of {get_args(AttackName)}, got {attack!r}")
    if importlib.util.find_spec("foolbox") is None:
        raise ModuleNotFoundError("attacks need foolbox: pip install 'fastmalade[attacks]'")
    from foolbox import attacks

    if attack == "fgsm":
        return attacks.LinfFastGradientAttack(random_start=False)
    return attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=random_start)


def attacked(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: AttackName,
    epsilon: float,
    *,
    steps: int = 40,
    step_size: float = 0.01,
    seed: int = 0,
    first_chunk: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Attack a model within an Linf ball, untargeted.

    Args:
        model: (B, C, H, W) in [0, 1] to logits (B, K); put into eval mode.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        attack: "fgsm" (one step) or "pgd" (random start in the ball, then ``steps`` signed steps).
        epsilon: radius of the ball, in units of the pixel range.
        steps: steps of "pgd".
        step_size: length of each of them.
        seed: fixes the random starts; torch's global generator is left as it was.
        first_chunk: number of chunks of ``ATTACK_CHUNK`` images that came before, when a run is resumed.
        progress: called with the number of images done after each chunk.

    Returns:
        (n, C, H, W) float32 in [0, 1], within epsilon of ``images`` up to float32 rounding.

    Raises:
        ModuleNotFoundError: foolbox is not installed.
        ValueError: an unknown attack, or a negative epsilon.

    Warns:
        GradientWarning: at least half the images of a batch got a gradient that was zero or not finite.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon}")
    runner = foolbox_attack(attack, steps=steps, step_size=step_size)
    from foolbox import PyTorchModel

    target = PyTorchModel(WatchedGradients(model).eval(), bounds=(0, 1), device=images.device)
    result = torch.empty_like(images)
    with torch.random.fork_rng():
        for index, start in enumerate(range(0, len(images), ATTACK_CHUNK)):
            torch.manual_seed(seed * 1_000_003 + first_chunk + index)
            part = slice(start, start + ATTACK_CHUNK)
            _, clipped, _ = runner(target, images[part], labels[part], epsilons=epsilon)
            result[part] = clipped
            if progress is not None:
                progress(len(images[part]))
    return result
