"""Where the time of an attack goes: the gradient of the whole defence against that of its classifier alone."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmalade.attacks.eot import DEFAULT_MAX_BYTES
from fastmalade.attacks.target import Target, per_image_loss
from fastmalade.defenses.defended import DefendedClassifier, GradientMode
from fastmalade.models.modes import evaluation_mode


@dataclass(frozen=True)
class GradientCost:
    """Time of one gradient of one noise draw of one image.

    Attributes:
        seconds: of the defended classifier.
        classifier_share: share of it that the classifier alone takes, 0 to 1.
    """

    seconds: float
    classifier_share: float


def gradient_cost(
    defended: DefendedClassifier,
    x: Tensor,
    labels: Tensor,
    *,
    gradient: GradientMode = "unrolled",
    samples: int = 1,
    repeats: int = 5,
) -> GradientCost:
    """Time the gradient of the cross entropy through the defence and through the classifier alone, taking turns.

    Args:
        defended: the model.
        x, labels: images (B, C, H, W), B >= 1, and their classes (B,).
        gradient: "unrolled" or "bpda".
        samples: noise draws per image; as in an attack they run as one batch where memory allows.
        repeats: turns; medians are reported.
    """
    target = Target(defended, gradient)
    rows = min(len(x) * samples, target.chains_per_call(x, DEFAULT_MAX_BYTES))
    chosen = torch.arange(rows, device=x.device) % len(x)
    images, classes = x[chosen], labels[chosen]
    ids = torch.arange(rows, device=x.device)
    model = target.needs_defence
    with evaluation_mode(defended):
        with torch.no_grad():
            purified = model.purifier(images, seed=0, sample_ids=ids)
        whole, alone = [], []
        for repeat in range(repeats):
            whole.append(_time(functools.partial(target.logits, seed=repeat, noise_ids=ids), images, classes))
            alone.append(_time(model.classifier, purified, classes))
    seconds = statistics.median(whole)
    return GradientCost(seconds / rows, statistics.median(alone) / seconds)


def _time(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    begin = time.perf_counter()
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = per_image_loss(logits(leaf), labels, "cross_entropy").sum()
    torch.autograd.grad(loss, leaf)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begin
