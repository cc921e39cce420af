"""Training of a classifier by cross entropy, on images as they are or attacked (001, section 4.1: Madry and ALP)."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmalade.checks import check_count, check_labels, check_unit_images
from fastmalade.models import build_classifier, in_channels_last
from fastmalade.models.modes import evaluation_mode, gradients_off
from fastmalade.training.adversarial import AdversarialSettings, attacked, drawn_seed
from fastmalade.training.loop import LoopSettings, TrainingReport, run_epochs


@dataclass(frozen=True)
class ClassifierSettings(LoopSettings):
    """Settings of :func:`train_classifier`; the shared ones are described at ``LoopSettings``.

    Attributes:
        name: "A", "B", "C" or "D" (paper 000, Table 7).
        max_shift: each training image is moved by up to this many pixels in each direction, 0 for none.
    """

    name: str = "C"
    epochs: int = 12
    max_shift: int = 0


@dataclass(frozen=True)
class AdversarialClassifierSettings(ClassifierSettings, AdversarialSettings):
    """Settings of :func:`train_classifier` on attacked images.

    Attributes:
        adversarial: "pgd": cross entropy of attacked images (Madry et al. 2018, eq. 2.1). "alp": the mean of the cross
            entropies of clean and attacked images, plus ``pairing`` times the squared distance of their logits,
            averaged over logits (Kannan et al. 2018, section 3).
        pairing: weight of that distance.
        attacked_validation: so many of the validation images are attacked too, by twice as many steps.
    """

    adversarial: str = "pgd"
    pairing: float = 0.5
    attacked_validation: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversarial not in ("pgd", "alp"):
            raise ValueError(f"adversarial: expected 'pgd' or 'alp', got {self.adversarial!r}")
        if not (math.isfinite(self.pairing) and self.pairing >= 0):
            raise ValueError(f"pairing: expected a number of at least 0, got {self.pairing!r}")
        check_count("attacked_validation", self.attacked_validation, 0)


def train_classifier(
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    adversarial: str | None = None,
    initial: nn.Module | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    **settings: Any,
) -> tuple[nn.Module, TrainingReport]:
    """Train classifier A, B, C or D of paper 000, Table 7, on the images or on attacked ones.

    Args:
        name: "A", "B", "C" or "D".
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        adversarial: None, "pgd" or "alp", see :class:`AdversarialClassifierSettings`.
        initial: start from a copy of this classifier's parameters; from fresh ones when None.
        validation: images and labels scored after each epoch.
        checkpoint: file written after each epoch; if it exists, training goes on from it.
        progress: show a progress bar on standard error.
        num_classes: logits; one more than the largest label when None.
        settings: fields of :class:`ClassifierSettings`, with ``adversarial`` of :class:`AdversarialClassifierSettings`.

    Returns:
        The classifier in eval mode with frozen parameters, and a report with ``validation_accuracy`` per epoch and,
        with ``adversarial``, ``validation_attacked_accuracy``.

    Raises:
        TypeError: a setting that this training does not have.
        ValueError: images, labels or settings that do not fit.
        CheckpointError: the checkpoint is of other settings.
    """
    chosen = _settings(name, adversarial, settings)
    images = check_unit_images(images)
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    check_labels(labels, len(images), classes)
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        model = build_classifier(
            name, in_channels=images.shape[1], image_size=tuple(images.shape[2:]), num_classes=classes
        )
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    in_channels_last(model)
    attack = _Attack(model, chosen) if isinstance(chosen, AdversarialClassifierSettings) else None

    def batch_loss(indices: Tensor) -> Tensor:
        batch = _shifted(images[indices], chosen.max_shift).contiguous(memory_format=torch.channels_last)
        targets = labels[indices]
        return F.cross_entropy(model(batch), targets) if attack is None else attack.loss(batch, targets)

    def validate() -> dict[str, float]:
        if validation is None:
            return {}
        scores = {"validation_accuracy": _accuracy(model, *validation)}
        return scores if attack is None else scores | attack.validate(*validation)

    report = run_epochs(
        model,
        chosen,
        len(images),
        batch_loss,
        validate,
        checkpoint=checkpoint,
        progress=progress,
        label=f"classifier {name}",
        begin_step=None if attack is None else attack.begin_step,
        extra={"warm_start": True} if initial is not None else None,
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model.requires_grad_(False), report


def _settings(name: str, adversarial: str | None, settings: dict[str, Any]) -> ClassifierSettings:
    if adversarial is None:
        return ClassifierSettings(name=name, **settings)
    return AdversarialClassifierSettings(name=name, adversarial=adversarial, **settings)


class _Attack:
    """The loss of a classifier on images attacked while it trains."""

    def __init__(self, model: nn.Module, settings: AdversarialClassifierSettings) -> None:
        self.model, self.settings, self.epsilon = model, settings, settings.epsilon

    def begin_step(self, position: float) -> None:
        self.epsilon = self.settings.epsilon_at(position)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with evaluation_mode(self.model), gradients_off(self.model):
            moved = attacked(self.model, images, labels, self.settings, self.epsilon, drawn_seed())
        if self.settings.adversarial == "pgd":
            return F.cross_entropy(self.model(moved), labels)
        both = torch.cat([images, moved])
        entropy = F.cross_entropy(self.model(both), torch.cat([labels, labels]))
        # Without dropout, which would tell two equal images apart.
        with evaluation_mode(self.model):
            clean, other = self.model(both).chunk(2)
        return entropy + self.settings.pairing * (clean - other).square().mean()

    def validate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        settings = dataclasses.replace(self.settings, attack_steps=2 * self.settings.attack_steps)
        images, labels = (part[: settings.attacked_validation] for part in (images, labels))
        if len(images) == 0:
            return {}
        moved = torch.cat(
            [
                attacked(self.model, x, y, settings, settings.epsilon, settings.seed)
                for x, y in zip(images.split(settings.batch_size), labels.split(settings.batch_size), strict=True)
            ]
        )
        return {"validation_attacked_accuracy": _accuracy(self.model, moved, labels)}


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    parts = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def _shifted(images: Tensor, max_shift: int) -> Tensor:
    """Move the whole batch (B, C, H, W) by one random offset; uncovered pixels are 0."""
    if max_shift == 0:
        return images
    down, right = torch.randint(-max_shift, max_shift + 1, (2,)).tolist()
    padded = F.pad(images, (max_shift,) * 4)
    height, width = images.shape[2:]
    return padded[:, :, max_shift + down :, max_shift + right :][:, :, :height, :width]
