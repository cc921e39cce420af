"""fastmalade: purification of images by Langevin dynamics with (supervised) denoising autoencoders.

The defence of "Counterstrike" and "MALADE" (papers 000 and 001), fast and exactly differentiable::

    import fastmalade

    clean = fastmalade.purify(batch)  # numpy, torch or DLPack; uint8 or floating
    purifier = fastmalade.Purifier.from_pretrained("malade-mnist")
    model = fastmalade.DefendedClassifier(purifier, classifier)  # attack this, with any library
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastmalade.api import purify
from fastmalade.backends import BackendUnavailableError
from fastmalade.chain.call import langevin_chain, langevin_trajectory
from fastmalade.chain.config import ChainConfig
from fastmalade.defenses.base import Defense
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.defenses.purifier import Purifier
from fastmalade.models import Autoencoder
from fastmalade.models.registry import load_classifier
from fastmalade.noise import standard_normal
from fastmalade.pretrained import PretrainedError, shipped_models

if TYPE_CHECKING:
    from fastmalade.adapters.onnx import export_onnx
    from fastmalade.attacks import eot_gradient
    from fastmalade.chain.reconstruction import autoencoder_vjp, reconstruction_error_gradient
    from fastmalade.data import load_mnist
    from fastmalade.evaluation import certify
    from fastmalade.gradcheck.check import check_gradient
    from fastmalade.suites import evaluate
    from fastmalade.training import train_autoencoder, train_classifier

try:
    __version__ = version("fastmalade")
except PackageNotFoundError:
    # A source tree on sys.path that was never installed has no metadata.
    __version__ = "0.1.0+uninstalled"

# Imported on first use: purification needs neither attacks and training nor the libraries that they bring in.
_LAZY = {
    "autoencoder_vjp": "fastmalade.chain.reconstruction",
    "certify": "fastmalade.evaluation",
    "check_gradient": "fastmalade.gradcheck.check",
    "eot_gradient": "fastmalade.attacks",
    "evaluate": "fastmalade.suites",
    "export_onnx": "fastmalade.adapters.onnx",
    "load_mnist": "fastmalade.data",
    "reconstruction_error_gradient": "fastmalade.chain.reconstruction",
    "train_autoencoder": "fastmalade.training",
    "train_classifier": "fastmalade.training",
}

__all__ = [
    "Autoencoder",
    "BackendUnavailableError",
    "ChainConfig",
    "DefendedClassifier",
    "Defense",
    "PretrainedError",
    "Purifier",
    "__version__",
    "autoencoder_vjp",
    "certify",
    "check_gradient",
    "eot_gradient",
    "evaluate",
    "export_onnx",
    "langevin_chain",
    "langevin_trajectory",
    "load_classifier",
    "load_mnist",
    "purify",
    "reconstruction_error_gradient",
    "shipped_models",
    "standard_normal",
    "train_autoencoder",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
