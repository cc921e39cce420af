"""A purifier as a preprocessing defence for ART (which has had no generative purifier of its own since 1.20).

    classifier = PyTorchClassifier(model, ..., preprocessing_defences=PurifierPreprocessor(purifier))

Needs ``adversarial-robustness-toolbox``: importing this module without it raises ModuleNotFoundError.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastmalade.defenses.base import Defense
from fastmalade.seeds import check_seed, fresh_seed

try:
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "art":
        raise
    raise ModuleNotFoundError(
        "adversarial-robustness-toolbox is not installed: pip install 'fastmalade[attacks]'", name="art"
    ) from None

Gradient = Literal["unrolled", "bpda"]


class PurifierPreprocessor(PreprocessorPyTorch):
    """Purification in front of any ART classifier, with its exact gradient or BPDA.

    ART differentiates in two ways. If all preprocessors are PyTorch ones, it runs ``forward`` under autograd and never
    calls ``estimate_forward``; so ``forward`` itself has the gradient asked for. If not, it calls the preprocessor on
    numpy arrays and ``estimate_gradient`` later; this replays the noise of the last call if the images are the same, so
    that the gradient belongs to the value.

    Args:
        purifier: the defence; images are (B, C, H, W) in its ``value_range``.
        gradient: "unrolled" is the exact derivative, "bpda" takes the purifier as the identity on the way back.
        seed: fixed noise for every call, or None for fresh noise at every call.
        apply_fit: also purify while ART trains the classifier.
        apply_predict: purify in predictions and attacks.

    Raises:
        TypeError: not a Defense, or a seed that is not an integer.
        ValueError: unknown gradient, or a seed out of range.
    """

    params = ["gradient", "seed"]  # noqa: RUF012  (name and type are those of ART's base class)

    def __init__(
        self,
        purifier: Defense,
        *,
        gradient: Gradient = "unrolled",
        seed: int | None = None,
        apply_fit: bool = False,
        apply_predict: bool = True,
    ) -> None:
        if not isinstance(purifier, Defense):
            raise TypeError(f"purifier: expected a Purifier or another Defense, got {type(purifier).__name__}")
        parameter = next(purifier.parameters(), None)
        self._dtype = torch.float32 if parameter is None else parameter.dtype
        device = torch.device("cpu") if parameter is None else parameter.device
        super().__init__(
            device_type="gpu" if device.type == "cuda" else "cpu",
            is_fitted=True,
            apply_fit=apply_fit,
            apply_predict=apply_predict,
        )
        self._device = device
        self.purifier = purifier
        self.gradient = gradient
        self.seed = seed
        self._last: tuple[np.ndarray, int] | None = None
        self._check_params()

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Purify images (B, C, H, W), with the chosen gradient; labels pass through.

        Returns:
            Purified images in the dtype of ``x``, and ``y``.

        Raises:
            TypeError, ValueError: not a floating tensor of the shape that the purifier takes.
        """
        return self._purified(x, fresh_seed() if self.seed is None else self.seed), y

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Purify numpy images (B, C, H, W); labels pass through. The seed is kept for the gradient."""
        seed = fresh_seed() if self.seed is None else self.seed
        with torch.no_grad():
            result = self._purified(torch.tensor(x, device=self._device), seed).cpu().numpy()
        self._last = (np.array(x), seed)
        return result, y

    def estimate_gradient(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """Vector-Jacobian product at numpy images.

        Args:
            x: (B, C, H, W).
            grad: gradient with respect to the purified images: (B, C, H, W), or K of them, (B, K, C, H, W).

        Returns:
            Gradient with respect to ``x``, of the shape of ``grad``.

        Raises:
            ValueError: shapes that do not fit.
        """
        seed = self._seed_of(x)
        leaf = torch.tensor(x, device=self._device, requires_grad=True)
        cotangent = torch.tensor(grad, device=self._device)
        per_class = grad.ndim == x.ndim + 1
        if (grad.shape[:1] + grad.shape[2:] if per_class else grad.shape) != x.shape:
            raise ValueError(f"grad: expected shape {x.shape} or (B, K, C, H, W), got {grad.shape}")
        columns = cotangent.unbind(1) if per_class else (cotangent,)
        purified = self._purified(leaf, seed)
        results = [torch.autograd.grad(purified, leaf, column, retain_graph=True)[0] for column in columns]
        return (torch.stack(results, dim=1) if per_class else results[0]).cpu().numpy()

    def _purified(self, x: Tensor, seed: int) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected floating images, got {got}")
        images = x.to(self._dtype)
        if self.gradient == "bpda":
            with torch.no_grad():
                purified = self.purifier(images, seed=seed)
            # Value of the purified images, gradient of the identity.
            return (purified + (images - images.detach())).to(x.dtype)
        return self.purifier(images, seed=seed).to(x.dtype)

    def _seed_of(self, x: np.ndarray) -> int:
        if self.seed is not None:
            return self.seed
        if self._last is not None and np.array_equal(self._last[0], x):
            return self._last[1]
        return fresh_seed()

    def _check_params(self) -> None:
        if self.gradient not in get_args(Gradient):
            raise ValueError(f"gradient: expected one of {', '.join(get_args(Gradient))}, got {self.gradient!r}")
        if self.seed is not None:
            self.seed = check_seed(self.seed)
