"""Networks of the papers; exported here: the Table 8 autoencoder and the Table 7 classifiers (000, appendix B)."""

from __future__ import annotations

from fastmalade.models.autoencoder import Autoencoder
from fastmalade.models.classifiers import (
    CLASSIFIERS,
    ClassifierA,
    ClassifierB,
    ClassifierC,
    ClassifierD,
    build_classifier,
    in_channels_last,
)

__all__ = [
    "CLASSIFIERS",
    "Autoencoder",
    "ClassifierA",
    "ClassifierB",
    "ClassifierC",
    "ClassifierD",
    "build_classifier",
    "in_channels_last",
]
