"""Expectation over transformation: gradients and decisions averaged over noise draws that run as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastmalade.attacks.masking import input_gradient
from fastmalade.attacks.target import Loss, Model, Target, noise_ids, per_image_loss
from fastmalade.checks import check_count, check_labelled_images
from fastmalade.defenses.defended import GradientMode
from fastmalade.models.modes import evaluation_mode
from fastmalade.seeds import check_sample_ids, check_seed, fresh_seed

DEFAULT_MAX_BYTES = 2**28
Judge = Literal["majority", "mean"]

# (x, labels, seed, noise ids) of a block of rows -> loss (rows,) to raise, logits (rows, K)
Objective = Callable[[Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Judging:
    """How an image is judged.

    Attributes:
        rule: "majority": more than half of the queries are fooled; "mean": the class of the largest mean softmax
            counts.
        chains: independent queries m per image.
        targeted: a query is fooled when its class is the label; otherwise when it differs from the label.
    """

    rule: Judge = "majority"
    chains: int = 9
    targeted: bool = False

    def __str__(self) -> str:
        return f"{self.rule} of {self.chains} queries with fresh noise"


@dataclass(frozen=True)
class EotGradient:
    """Gradient of the loss averaged over noise draws.

    Attributes:
        gradient: (B, C, H, W), mean over the draws of the gradient of the loss; no sign is taken before the mean.
        loss: (B,), mean loss.
        probabilities: (B, K), mean softmax of the logits: the vote of all draws at these images.
        spread: (B,) cosine between the mean gradients of the first and the second half of the draws, or None if not
            asked for. Near 1: the draws were enough. Near 0: the mean is noise.
        zero, non_finite: bool (B,): the mean gradient was zero everywhere, or NaN or infinite somewhere; the latter is
            put to zero.
    """

    gradient: Tensor
    loss: Tensor
    probabilities: Tensor
    spread: Tensor | None
    zero: Tensor
    non_finite: Tensor


def eot_gradient(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    samples: int = 16,
    gradient: GradientMode = "unrolled",
    loss: Loss = "cross_entropy",
    seed: int | None = None,
    sample_ids: Any = None,
    spread: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> EotGradient:
    """Gradient of the expected loss of a stochastic defence (EOT: Athalye et al. 2018; 001 sec. 2.1.2).

    All draws of all images run as one batch, told apart by their sample ids (image id * samples + draw), in blocks
    that keep memory within ``max_bytes``. Blocks change the result by float rounding only.

    Args:
        model: a DefendedClassifier, or any callable (B, C, H, W) -> logits (B, K) with independent rows. Modules are
            in eval mode during the call.
        x: floating (B, C, H, W) in the model's value range; never written to.
        labels: int64 (B,).
        samples: noise draws K per image, at least 1 (2 for ``spread``).
        gradient: for a DefendedClassifier "unrolled" (exact), "bpda", or "blind" (that of the bare classifier).
        loss: "cross_entropy" or "margin".
        seed: of the noise; fresh from the operating system by default.
        sample_ids: B integers, 0..B-1 by default.
        spread: also report the cosine between the halves.
        max_bytes: memory to aim at, see ``Target.chains_per_call``.

    Raises:
        TypeError, ValueError: a wrong argument.
        FloatingPointError: a gradient that is not finite.
    """
    target = Target(model, gradient)
    check_labelled_images(x, labels)
    ids = check_sample_ids(sample_ids, len(x), x.device)
    number = fresh_seed() if seed is None else check_seed(seed)
    with evaluation_mode(model):
        found = mean_gradient(
            cross_entropy_objective(target, loss),
            x,
            labels,
            number,
            ids,
            samples=samples,
            rows=target.chains_per_call(x, max_bytes),
            spread=spread,
        )
    if bool(found.non_finite.any()):
        broken = int(found.non_finite.sum())
        raise FloatingPointError(
            f"gradient: expected finite values, got NaN or infinity for {broken} of {len(x)} images"
        )
    return found


def cross_entropy_objective(target: Target, loss: Loss) -> Objective:
    """The loss of the logits that the attacker sees as an objective for :func:`mean_gradient`."""

    def objective(x: Tensor, labels: Tensor, seed: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = target.attacked_logits(x, seed, ids)
        return per_image_loss(logits, labels, loss), logits

    return objective


def mean_gradient(
    objective: Objective,
    x: Tensor,
    labels: Tensor,
    seed: int,
    ids: Tensor,
    *,
    samples: int,
    rows: int,
    spread: bool = False,
) -> EotGradient:
    """:func:`eot_gradient` for checked arguments and any objective; ``rows`` images times draws per call."""
    check_count("samples", samples, 2 if spread else 1)
    halves = [torch.zeros_like(x, requires_grad=False) for _ in range(2)]
    losses = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    votes: Tensor | None = None
    for part, draws in blocks(len(x), samples, rows):
        count = len(draws)
        leaf = x[part].detach().repeat_interleave(count, dim=0).requires_grad_(True)
        repeated = labels[part].repeat_interleave(count)
        with torch.enable_grad():
            values, logits = objective(leaf, repeated, seed, noise_ids(ids[part], draws, samples))
            gradients = input_gradient(values, leaf)
        gradients = gradients.unflatten(0, (-1, count))
        cut = min(max(samples // 2 - draws.start, 0), count)
        halves[0][part] += gradients[:, :cut].sum(1)
        halves[1][part] += gradients[:, cut:].sum(1)
        losses[part] += values.detach().unflatten(0, (-1, count)).sum(1)
        probabilities = logits.detach().softmax(1).unflatten(0, (-1, count)).sum(1)
        if votes is None:
            votes = probabilities.new_zeros(len(x), probabilities.shape[1])
        votes[part] += probabilities
    total = (halves[0] + halves[1]) / samples
    broken = ~torch.isfinite(total.flatten(1)).all(1)
    zero = (total == 0).flatten(1).all(1)
    return EotGradient(
        torch.where(broken.reshape(-1, *[1] * (x.ndim - 1)), 0.0, total),
        losses / samples,
        x.new_zeros(0, 0) if votes is None else votes / samples,
        _cosine(*halves) if spread else None,
        zero,
        broken,
    )


def judge(
    target: Target,
    x: Tensor,
    labels: Tensor,
    seed: int,
    ids: Tensor,
    judging: Judging,
    *,
    rows: int,
) -> tuple[Tensor, Tensor]:
    """Whether images fool the model under noise that no attack has seen.

    Args:
        x: (B, C, H, W).
        labels: int64 (B,).
        seed, ids: of the noise; draw j of image id b has id b * chains + j.
        judging: the rule and the number of queries.
        rows: images times queries per call.

    Returns:
        bool (B,), and the share of fooled queries, float64 (B,): its mean is the expected success of one query.
    """
    chains, targeted = judging.chains, judging.targeted
    fooled = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    votes: Tensor | None = None
    for part, draws in blocks(len(x), chains, rows):
        count = len(draws)
        with torch.no_grad():
            logits = target.logits(x[part].repeat_interleave(count, dim=0), seed, noise_ids(ids[part], draws, chains))
        hits = (logits.argmax(1) == labels[part].repeat_interleave(count)) == targeted
        fooled[part] += hits.unflatten(0, (-1, count)).sum(1)
        probabilities = logits.softmax(1).unflatten(0, (-1, count)).sum(1)
        votes = probabilities.new_zeros(len(x), probabilities.shape[1]) if votes is None else votes
        votes[part] += probabilities
    share = fooled / chains
    if judging.rule == "majority" or votes is None:
        return share > 0.5, share
    return (votes.argmax(1) == labels) == targeted, share


def blocks(n_images: int, n_samples: int, rows: int) -> Iterator[tuple[slice, range]]:
    """Images times draws in blocks of at most ``rows``: whole images if all draws of one fit, else parts of one."""
    if n_samples <= rows:
        images = rows // n_samples
        for start in range(0, n_images, images):
            yield slice(start, min(start + images, n_images)), range(n_samples)
        return
    for image in range(n_images):
        for first in range(0, n_samples, rows):
            yield slice(image, image + 1), range(first, min(first + rows, n_samples))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double().flatten(1), b.double().flatten(1)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    # A gradient of zero has no direction: the cosine is 0 then, not undefined.
    return torch.where(lengths > 0, (a * b).sum(1) / lengths.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
