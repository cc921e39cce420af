"""Training of the papers' networks: deterministic for a seed, resumable after an interruption."""

from __future__ import annotations

from fastmalade.training.autoencoder import AutoencoderSettings, autoencoder_loss, train_autoencoder
from fastmalade.training.classifier import AdversarialClassifierSettings, ClassifierSettings, train_classifier
from fastmalade.training.loop import CheckpointError, TrainingReport
from fastmalade.training.purifier import PurifierSettings, train_purifier

__all__ = [
    "AdversarialClassifierSettings",
    "AutoencoderSettings",
    "CheckpointError",
    "ClassifierSettings",
    "PurifierSettings",
    "TrainingReport",
    "autoencoder_loss",
    "train_autoencoder",
    "train_classifier",
    "train_purifier",
]
