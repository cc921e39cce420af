"""Differentiable substitutes for a defended classifier, or for its purifier alone (paper 004, sections 4.2.2, 4.2.3).

An attacker who cannot differentiate the defence trains one and attacks that instead:
:func:`fastmalade.attacks.transfer.transfer_attack` attacks a substitute and tries the result on the defence.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.attacks.base import Attack
from fastmalade.attacks.masking import input_gradient
from fastmalade.attacks.queries import Queries
from fastmalade.checks import check_count, check_number, check_range
from fastmalade.defenses.base import Defense
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.models.denoiser import SkipDenoiser
from fastmalade.models.encoder import ConvEncoder
from fastmalade.seeds import check_seed, derive_seed
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs

# What a derived seed is for.
_QUERY, _TRAIN, _INITIAL = range(3)


@dataclass(frozen=True)
class SubstituteSettings(LoopSettings):
    """Settings of :func:`train_substitute_classifier`; the shared ones are described at ``LoopSettings``.

    Attributes:
        epochs: of each round, 10 in Papernot et al.
        rounds: trainings; before each but the first the set of queries doubles. 6 in Papernot et al.
        step: lambda, length of the augmenting step in every pixel, in units of the value range; 0.1 in Papernot et al.
        query_batch: images queried at once; it changes the answers by float rounding only.
    """

    epochs: int = 10
    rounds: int = 6
    step: float = 0.1
    query_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_count("rounds", self.rounds, 1)
        check_count("query_batch", self.query_batch, 1)
        check_number("step", self.step)


@dataclass(frozen=True)
class QueriedSet:
    """The attacker's queries, and how well the substitute learned from them.

    Attributes:
        images: (m, C, H, W), every image that was queried, the attacker's own first.
        labels: the target's answers, int64 (m,).
        agreement: per round, the share of all images so far for which the trained substitute gives the same answer.
    """

    images: Tensor
    labels: Tensor
    agreement: list[float]


def train_substitute_classifier(
    substitute: nn.Module,
    target: DefendedClassifier,
    images: Tensor,
    *,
    inner_attack: Attack | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> QueriedSet:
    """Train a substitute, in place, on the answers of a defended classifier, which is never differentiated.

    Each round queries the target for the classes of the new images and trains on all answers so far; then
    :func:`augmented` adds, for every image, one that tells more about the decision border. Starting from n images, the
    target is queried about n 2^(rounds - 1).

    Args:
        substitute: (B, C, H, W) in the purifier's value range -> logits (B, K); its parameters that require a
            gradient are trained. The paper takes the architecture of the inner classifier, with fresh parameters.
        target: purifier and classifier; every query draws its own noise.
        images: (n, C, H, W), dtype of the substitute, in the purifier's value range; Papernot et al. start from 150.
        inner_attack: also query ``images`` as attacked by this against ``target.classifier``, whose gradients the
            attacker knows, as in the paper. That doubles n.
        checkpoint: file for queries, answers and the substitute, written about once a minute while querying, on an
            interruption and after each round; ``checkpoint`` + ".training" is written after each epoch. If they exist
            the run resumes from them, to bitwise the same result, without repeating a query.
        progress: show progress bars on standard error.
        settings: fields of :class:`SubstituteSettings`. All randomness follows from ``seed``.

    Returns:
        Queries and answers. The substitute is left in eval mode.

    Raises:
        TypeError: a target or an attack of another type.
        ValueError: images or settings that do not fit, or a substitute with nothing to train.
        CheckpointError: the checkpoint is of another run, or damaged.

    Source: paper 004, section 4.2.2; Papernot et al. 2016, "Practical black-box attacks", algorithm 1.
    """
    chosen = SubstituteSettings(**settings)
    if not isinstance(target, DefendedClassifier):
        raise TypeError(f"target: expected a DefendedClassifier, got {type(target).__name__}")
    if inner_attack is not None and not isinstance(inner_attack, Attack):
        raise TypeError(f"inner_attack: expected an attack or None, got {type(inner_attack).__name__}")
    _check_trainable("substitute", substitute)
    value_range = target.purifier.value_range
    images = _check_images(images, value_range)

    asked_of = dataclasses.asdict(chosen) | {
        "inner_attack": None if inner_attack is None else inner_attack.settings(),
        "substitute": repr(substitute),
    }
    queries = Queries(images, target, asked_of, checkpoint)
    if queries.parameters:
        substitute.load_state_dict(queries.parameters)
        substitute.eval()
    seed = derive_seed(chosen.seed, _QUERY)

    def ask() -> Tensor:
        return queries.ask(
            lambda x, ids: target(x, seed=seed, sample_ids=ids).argmax(1),
            target,
            chosen.query_batch,
            "asking",
            progress=progress,
        )

    labels = ask()
    given = len(images)
    if inner_attack is not None:
        if len(queries.images) == given:
            made = inner_attack(
                target.classifier, queries.images, labels, value_range=value_range, progress=progress
            ).adversarial
            queries.extend(made)
            labels = ask()
        given *= 2
    for number in range(len(queries.agreement), chosen.rounds):
        if len(queries.images) < given * 2**number:
            made = _in_batches(
                lambda x, y: augmented(substitute, x, y, chosen.step, value_range),
                queries.images,
                labels,
                chosen.query_batch,
            )
            queries.extend(made)
            labels = ask()
        _train_round(substitute, queries.images, labels, chosen, number, queries.training_checkpoint, progress)
        with torch.no_grad():
            right = [
                (substitute(x).argmax(1) == y).sum()
                for x, y in zip(queries.images.split(chosen.query_batch), labels.split(chosen.query_batch), strict=True)
            ]
        queries.end_round(substitute, int(torch.stack(right).sum()) / len(labels))
    return QueriedSet(queries.images, labels, queries.agreement)


def augmented(
    substitute: nn.Module, images: Tensor, labels: Tensor, step: float, value_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Jacobian-based augmentation: x + step sign(dp_y / dx), p_y the substitute's probability of the target's answer y.

    The gradient is taken of log(p_y / (1 - p_y)), which has the same sign and does not underflow where a confident
    substitute's p_y is 0 or 1.

    Args:
        substitute: (B, C, H, W) -> logits (B, K), K >= 2, in eval mode.
        images: (B, C, H, W) in ``value_range``.
        labels: y, int64 (B,).
        step: lambda.
        value_range: the result is clipped to it.

    Returns:
        (B, C, H, W).

    Source: Papernot et al. 2016, "Practical black-box attacks", section 4.2.
    """
    with torch.enable_grad():
        x = images.detach().requires_grad_(True)
        logits = substitute(x)
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
        gradient = input_gradient(own - others, x)
    return (images + step * gradient.sign()).clamp(*value_range)


@dataclass(frozen=True)
class InversionSettings(LoopSettings):
    """Settings of :func:`train_substitute_purifier`; the shared ones are described at ``LoopSettings``.

    Attributes:
        query_batch: images purified at once; it changes the answers by float rounding only.
    """

    epochs: int = 20
    query_batch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_count("query_batch", self.query_batch, 1)


def train_substitute_purifier(
    substitute: nn.Module,
    defense: Defense,
    images: Tensor,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> TrainingReport:
    """Train a substitute, in place, for the purifier alone, which is never differentiated.

    The loss is the mean over pixels of the squared difference from ``defense(images)``, purified once.

    Args:
        substitute: (B, C, H, W) -> (B, C, H, W) in the defence's value range, see :func:`substitute_purifier`; its
            parameters that require a gradient are trained.
        defense: any.
        images: (n, C, H, W), dtype of the substitute, in the defence's value range.
        checkpoint: file for the purified images, written about once a minute while purifying and on an interruption;
            ``checkpoint`` + ".training" is written after each epoch. If they exist the run resumes from them.
        progress: show progress bars on standard error.
        settings: fields of :class:`InversionSettings`. All randomness follows from ``seed``.

    Returns:
        A report; the substitute is left in eval mode.

    Raises:
        TypeError: not a Defense.
        ValueError: images or settings that do not fit, or a substitute with nothing to train.
        CheckpointError: the checkpoint is of other settings.

    Source: paper 004, section 4.2.3.
    """
    chosen = InversionSettings(**settings)
    if not isinstance(defense, Defense):
        raise TypeError(f"defense: expected a Defense, got {type(defense).__name__}")
    _check_trainable("substitute", substitute)
    images = _check_images(images, defense.value_range)
    seed = derive_seed(chosen.seed, _QUERY)
    # Training settings are checked by the training's own checkpoint: the same answers serve them all.
    queries = Queries(images, defense, {"seed": chosen.seed, "query_batch": chosen.query_batch}, checkpoint)
    wanted = queries.ask(
        lambda x, ids: defense(x, seed=seed, sample_ids=ids),
        defense,
        chosen.query_batch,
        "purifying",
        progress=progress,
    )
    return run_epochs(
        substitute,
        chosen,
        len(images),
        lambda indices: F.mse_loss(substitute(images[indices]), wanted[indices]),
        dict,
        checkpoint=queries.training_checkpoint,
        progress=progress,
        log=False,
        label="substitute purifier",
    )


def substitute_purifier(defense: Defense, *, width: int = 32, channels: int | None = None, seed: int = 0) -> nn.Module:
    """An untrained network for :func:`train_substitute_purifier`, suited to the defence.

    For a defence that projects onto a generator this is x -> G(E(x)), with its own generator G, frozen, and E a
    :class:`ConvEncoder`, as in the paper; for any other it is APuDAE's autoencoder with skip connections.

    Args:
        defense: any.
        width: of the network.
        channels: C of the images, for a defence that takes any number.
        seed: of the parameters.

    Raises:
        ValueError: ``channels`` missing, or not those of the defence.

    Source: paper 004, section 4.2.3.
    """
    known = defense.channels or channels
    if known is None or channels not in (None, known):
        raise ValueError(f"channels: expected {known or 'the C of the images'}, got {channels}")
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, _INITIAL))
        generator: Any = getattr(defense, "generator", None)
        if generator is None:
            return InValueRange(SkipDenoiser(known, width), defense.value_range)
        size: tuple[int, int] = generator.image_size
        encoder = ConvEncoder(generator.latent_dim, width, (known, *size))
    return InValueRange(nn.Sequential(encoder, copy.deepcopy(generator).requires_grad_(False)), defense.value_range)


class InValueRange(nn.Module):
    """A network for images in [0, 1] made into one for images in ``value_range``.

    Args:
        network: (B, C, H, W) -> (B, C, H, W).
        value_range: (low, high).
    """

    def __init__(self, network: nn.Module, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.network, self.value_range = network, value_range

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in the value range to images of the same shape and range."""
        low, high = self.value_range
        return self.network((x - low) / (high - low)) * (high - low) + low


class CombinedSubstitute(nn.Module):
    """The model of the combined attack: the target's own classifier behind a substitute for its purifier.

    Args:
        purifier: trained by :func:`train_substitute_purifier`.
        classifier: ``target.classifier``.

    Source: paper 004, section 4.2.3 and eq. 12.
    """

    def __init__(self, purifier: nn.Module, classifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        return self.classifier(self.purifier(x))


def _train_round(
    substitute: nn.Module,
    images: Tensor,
    labels: Tensor,
    chosen: SubstituteSettings,
    number: int,
    checkpoint: Path | None,
    progress: bool,
) -> None:
    # The loop derives torch's seeds from its own by a multiplication, which 63 bits would overflow.
    seed = derive_seed(chosen.seed, _TRAIN, number) >> 32
    run_epochs(
        substitute,
        dataclasses.replace(chosen, seed=seed),
        len(images),
        lambda indices: F.cross_entropy(substitute(images[indices]), labels[indices]),
        dict,
        checkpoint=checkpoint,
        progress=progress,
        log=False,
        label=f"substitute, round {number + 1}/{chosen.rounds}",
    )


def _in_batches(function: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, size: int) -> Tensor:
    return torch.cat([function(x, y) for x, y in zip(images.split(size), labels.split(size), strict=True)])


def _check_images(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or len(images) == 0:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected a floating tensor (n, C, H, W), n >= 1, got {got}")
    return check_range(images, value_range)


def _check_trainable(name: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"{name}: expected a module with parameters that require a gradient, got {type(model).__name__}"
        )
