"""Adversarial training of a purifier through its own chain, alone or together with the classifier behind it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.checks import check_count, check_labels, check_unit_images
from fastmalade.defenses.purifier import Purifier
from fastmalade.models.modes import evaluation_mode, gradients_off
from fastmalade.seeds import derive_seed
from fastmalade.training.adversarial import AdversarialSettings, attacked, drawn_seed
from fastmalade.training.loop import TrainingReport, run_epochs


@dataclass(frozen=True)
class PurifierSettings(AdversarialSettings):
    """Settings of :func:`train_purifier`; those of the attack are described at ``AdversarialSettings``.

    Attributes:
        learning_rate: Adam's rate for the autoencoder at the start.
        classifier_rate: the classifier's rate as a multiple of that, where it is trained too.
        clean_share: share of each batch that is not attacked, 0 to 1.
        denoising: weight mu of the term that keeps r a denoiser: the squared error of r(x + nu), averaged over pixels.
        sigma2: variance of nu.
        clip_norm: longest gradient of all parameters together; through N steps a single batch can have a very long one.
        attacked_validation: so many of the validation images are attacked after each epoch, by twice as many steps.
        patience: stop after so many epochs without a better accuracy under attack; 0 for never.
    """

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    attack_steps: int = 6
    classifier_rate: float = 0.3
    clean_share: float = 0.25
    denoising: float = 0.0
    sigma2: float = 0.15
    clip_norm: float = 5.0
    attacked_validation: int = 500
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("classifier_rate", "sigma2", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if not (math.isfinite(self.denoising) and self.denoising >= 0):
            raise ValueError(f"denoising: expected a number of at least 0, got {self.denoising!r}")
        if not 0.0 <= self.clean_share <= 1.0:
            raise ValueError(f"clean_share: expected a number from 0 to 1, got {self.clean_share!r}")
        check_count("attacked_validation", self.attacked_validation, 1)
        check_count("patience", self.patience, 0)


def train_purifier(
    purifier: Purifier,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    train_classifier: bool = False,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> tuple[Purifier, nn.Module, TrainingReport]:
    """Train r for what its chain is used for: that the classifier is right behind it, on attacked images.

    Each batch is attacked by gradient ascent through all steps of the chain and the classifier, with fresh noise at
    every step of the attack; then one Adam step lowers

        CE(f(chain(x'))) + mu |r(x + nu) - x|^2 / pixels,

    the gradient again taken through all steps. Both networks are in eval mode throughout.

    Args:
        purifier: a trained one with value range (0, 1); it is not changed.
        classifier: f, from (B, C, H, W) in [0, 1] to logits; it is not changed.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        train_classifier: train f too. It then no longer serves on its own: what it sees in training is purified.
        validation: images and labels scored after each epoch, by attacks and noise that are the same each time.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        settings: fields of :class:`PurifierSettings`.

    Returns:
        The purifier and the classifier of the epoch with the best accuracy under attack (the last one without
        validation), in eval mode with frozen parameters, and a report: ``validation_accuracy`` of clean purified images
        and ``validation_attacked_accuracy``, which an attack with the exact gradient leaves, both of single queries
        with noise the attack has not seen.

    Raises:
        TypeError: a purifier whose r is no module, or a setting that does not exist.
        ValueError: images, labels or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.

    Source: the inner attack is that of Madry et al. 2018; that a purifier can be fine-tuned under attack is in Lin et
    al. 2024 (AToP), for a purifier of one pass. The papers of MALADE do not train through the chain.
    """
    chosen = PurifierSettings(**settings)
    images = check_unit_images(images)
    check_labels(labels, len(images), int(labels.max()) + 1)
    if purifier.value_range != (0.0, 1.0):
        raise ValueError(f"purifier: expected value range (0.0, 1.0), got {purifier.value_range}")
    if not isinstance(purifier.autoencoder, nn.Module):
        raise TypeError(f"purifier: expected a module r to train, got {type(purifier.autoencoder).__name__}")
    pair = _Pair(purifier, classifier, train_classifier)
    training = _Training(pair, purifier, chosen)

    def batch_loss(indices: Tensor) -> Tensor:
        return training.loss(images[indices], labels[indices])

    def validate() -> dict[str, float]:
        return {} if validation is None else training.validate(*validation)

    def finished(history: list[dict[str, float]]) -> bool:
        scores = [epoch.get("validation_attacked_accuracy", math.nan) for epoch in history]
        if chosen.patience == 0 or len(scores) <= chosen.patience or math.isnan(scores[-1]):
            return False
        return max(scores[-chosen.patience :]) <= max(scores[: -chosen.patience])

    groups = [{"params": list(pair.autoencoder.parameters()), "rate_factor": 1.0}]
    if train_classifier:
        groups.append({"params": list(pair.classifier.parameters()), "rate_factor": chosen.classifier_rate})
    report = run_epochs(
        pair,
        chosen,
        len(images),
        batch_loss,
        validate,
        checkpoint=checkpoint,
        progress=progress,
        label="purifier and classifier" if train_classifier else "purifier",
        extra={"train_classifier": train_classifier, "chain": purifier.chain.to_dict()},
        optimizer=torch.optim.Adam(groups, lr=chosen.learning_rate),
        begin_step=training.begin_step,
        clip_norm=chosen.clip_norm,
        finished=finished,
    )
    if validation is not None:
        pair.take_best()
    pair.requires_grad_(False)
    trained = copy.deepcopy(purifier)
    trained.autoencoder = pair.autoencoder
    return trained.eval(), pair.classifier.eval(), report


class _Pair(nn.Module):
    """Both networks, and copies of the best ones so far: one state dict, so that one checkpoint holds the whole run."""

    best_score: Tensor

    def __init__(self, purifier: Purifier, classifier: nn.Module, train_classifier: bool) -> None:
        super().__init__()
        autoencoder: Any = purifier.autoencoder
        networks = nn.ModuleDict({"autoencoder": autoencoder, "classifier": classifier})
        self.current = copy.deepcopy(networks).requires_grad_(True)
        self.best = copy.deepcopy(networks).requires_grad_(False)
        self.classifier.requires_grad_(train_classifier)
        self.register_buffer("best_score", torch.tensor(-1.0))

    @property
    def autoencoder(self) -> nn.Module:
        return self.current["autoencoder"]

    @property
    def classifier(self) -> nn.Module:
        return self.current["classifier"]

    def keep_if_best(self, score: float) -> None:
        if score > float(self.best_score):
            self.best_score.fill_(score)
            self.best.load_state_dict(self.current.state_dict())

    def take_best(self) -> None:
        self.current.load_state_dict(self.best.state_dict())


class _Training:
    """Loss and scores of :func:`train_purifier`."""

    def __init__(self, pair: _Pair, purifier: Purifier, settings: PurifierSettings) -> None:
        self.pair, self.settings, self.epsilon = pair, settings, settings.epsilon
        self.purifier = Purifier(
            pair.autoencoder,
            purifier.chain,
            backend=purifier.backend,
            max_bytes=purifier.max_bytes,
            precision=purifier.precision,
        )

    def begin_step(self, position: float) -> None:
        self.epsilon = self.settings.epsilon_at(position)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        clean = round(self.settings.clean_share * len(images))
        logits = self._queries(drawn_seed())
        with evaluation_mode(self.pair):
            with gradients_off(self.pair):
                moved = attacked(logits, images[clean:], labels[clean:], self.settings, self.epsilon, drawn_seed())
            loss = F.cross_entropy(logits(torch.cat([images[:clean], moved])), labels)
            if self.settings.denoising > 0:
                noisy = images + math.sqrt(self.settings.sigma2) * torch.randn_like(images)
                error = (self.pair.autoencoder(noisy) - images).square().mean()
                loss = loss + self.settings.denoising * error
        return loss

    def validate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        settings, size = self.settings, self.settings.batch_size
        stronger = dataclasses.replace(settings, attack_steps=2 * settings.attack_steps)
        right = right_attacked = tried = 0
        for part, (x, y) in enumerate(zip(images.split(size), labels.split(size), strict=True)):
            queries = self._queries(derive_seed(settings.seed, 1, part))
            right += int((queries(x).argmax(1) == y).sum())
            left = settings.attacked_validation - tried
            if left > 0:
                x, y = x[:left], y[:left]
                moved = attacked(queries, x, y, stronger, settings.epsilon, derive_seed(settings.seed, 2, part))
                right_attacked += int((queries(moved).argmax(1) == y).sum())
                tried += len(x)
        scores = {
            "validation_accuracy": right / len(images),
            "validation_attacked_accuracy": right_attacked / tried,
        }
        self.pair.keep_if_best(scores["validation_attacked_accuracy"])
        return scores

    def _queries(self, seed: int) -> Callable[[Tensor], Tensor]:
        """The classifier behind the chain, (B, C, H, W) to logits, with noise of its own at every call."""
        count = itertools.count()

        def logits(x: Tensor) -> Tensor:
            found: Tensor = self.pair.classifier(self.purifier(x, seed=derive_seed(seed, next(count))))
            return found

        return logits
