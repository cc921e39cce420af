"""Training of the papers' networks: deterministic for a seed, resumable after an interruption."""

from __future__ import annotations

from fastmalade.training.autoencoder import AutoencoderSettings, autoencoder_loss, train_autoencoder
from fastmalade.training.classifier import ClassifierSettings, train_classifier
from fastmalade.training.loop import CheckpointError, TrainingReport

__all__ = [
    "AutoencoderSettings",
    "CheckpointError",
    "ClassifierSettings",
    "TrainingReport",
    "autoencoder_loss",
    "train_autoencoder",
    "train_classifier",
]
