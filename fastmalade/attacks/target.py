"""What an attack differentiates and queries: a defended model with the gradient that the attacker uses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmalade.checks import check_value_range
from fastmalade.defenses.base import Defense
from fastmalade.defenses.defended import DefendedClassifier, GradientMode, check_stated_gradient

Loss = Literal["cross_entropy", "margin"]
Model = Callable[..., Tensor]


def per_image_loss(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """The loss that an untargeted attack raises, (B, K) logits and (B,) int64 labels to (B,).

    "cross_entropy" is 000 eq. 1. "margin" is the largest other logit minus that of the label (Carlini and Wagner
    2017), whose gradient does not vanish in float32 when the classifier is certain.
    """
    if loss == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none")
    if loss != "margin":
        raise ValueError(f"loss: expected one of {', '.join(get_args(Loss))}, got {loss!r}")
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own


class Target:
    """A model as an attack sees it; the model itself is not changed.

    Args:
        model: a :class:`DefendedClassifier`, or any callable (B, C, H, W) -> logits (B, K) whose rows do not depend
            on each other.
        gradient: the gradient of the attacker, for a DefendedClassifier: "unrolled", "bpda" or "blind". Any other
            model is differentiated directly, which is "unrolled".
        value_range: (low, high) of the images of a model that is not a DefendedClassifier, (0, 1) by default.

    Raises:
        TypeError: not callable.
        ValueError: an unknown gradient; "bpda" or "blind", or a value range, for a model that cannot take it.
    """

    def __init__(
        self, model: Model, gradient: GradientMode = "unrolled", value_range: tuple[float, float] | None = None
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or callable, got {type(model).__name__}")
        if gradient not in get_args(GradientMode):
            raise ValueError(f"gradient: expected one of {', '.join(get_args(GradientMode))}, got {gradient!r}")
        self.defended: DefendedClassifier | None = None
        if isinstance(model, DefendedClassifier):
            if value_range is not None and check_value_range(value_range) != model.purifier.value_range:
                raise ValueError(
                    f"value_range: expected the purifier's {model.purifier.value_range}, got {value_range}"
                )
            check_stated_gradient(model.purifier, gradient)
            # Shallow: modules are shared, and only the copy gets the attacker's gradient.
            self.defended = copy.copy(model)
            self.defended.gradient = gradient
            self.value_range = model.purifier.value_range
        else:
            if gradient != "unrolled":
                raise ValueError(
                    f"gradient: expected 'unrolled' for a {type(model).__name__}, which is differentiated as it is, "
                    f"got {gradient!r}; 'bpda' and 'blind' need a DefendedClassifier"
                )
            self.value_range = (0.0, 1.0) if value_range is None else check_value_range(value_range)
        self.model = model

    @property
    def needs_defence(self) -> DefendedClassifier:
        """The DefendedClassifier, for attacks that look inside.

        Raises:
            TypeError: the model is something else.
        """
        if self.defended is None:
            raise TypeError(f"model: this attack needs a DefendedClassifier, got {type(self.model).__name__}")
        return self.defended

    def logits(self, x: Tensor, seed: int, noise_ids: Tensor) -> Tensor:
        """Logits (B, K) of x (B, C, H, W) for the noise of ``seed`` and ``noise_ids`` (B,).

        A model other than a DefendedClassifier draws whatever noise it draws.
        """
        if self.defended is None:
            return self.model(x)
        return self.defended(x, seed=seed, sample_ids=noise_ids)

    def attacked_logits(self, x: Tensor, seed: int, noise_ids: Tensor) -> Tensor:
        """Logits (B, K) whose loss the attacker differentiates: :meth:`logits`, or with "blind" the bare classifier's.

        A DefendedClassifier set to "blind" combines the defended value with the Jacobian of the bare classifier, and no
        attacker has a loss of such logits: one who does not know the defence sees the bare classifier's value, too.
        """
        if self.defended is not None and self.defended.gradient == "blind":
            return self.defended.classifier(x)
        return self.logits(x, seed, noise_ids)

    def chains_per_call(self, x: Tensor, max_bytes: int) -> int:
        """How many rows of the size of an image of ``x`` may run as one call within ``max_bytes``, at least 1.

        This counts the states that a defence keeps for its gradient and, as an allowance for the activations of the
        classifier, 32 times the image. A Purifier keeps no states: its gradient has its own budget
        (``Purifier.max_bytes``).
        """
        states, chains = 1, 1
        if self.defended is not None:
            states, chains = self.defended.purifier.states_kept, self.defended.n_chains
        per_row = max(1, x[0].numel() if len(x) else 1) * x.element_size() * (states + 32) * chains
        return max(1, max_bytes // per_row)


def reconstruct(purifier: Defense, x: Tensor) -> Tensor:
    """r(x) of the purifier's autoencoder for images (B, C, H, W) in the purifier's value range, and back.

    Raises:
        TypeError: a defence without an autoencoder.
    """
    autoencoder = getattr(purifier, "autoencoder", None)
    if autoencoder is None:
        raise TypeError(f"purifier: expected a defence with an autoencoder, got {type(purifier).__name__}")
    low, high = purifier.value_range
    if (low, high) == (0.0, 1.0):
        return autoencoder(x)
    return autoencoder((x - low) / (high - low)) * (high - low) + low


def noise_ids(image_ids: Tensor, samples: Sequence[int] | range, n_samples: int) -> Tensor:
    """Ids of noise draws: image id * n_samples + sample, image by image; int64 (B,) to uint64 (B * len(samples),)."""
    chosen = torch.as_tensor(list(samples), dtype=torch.int64, device=image_ids.device)
    return (image_ids[:, None] * n_samples + chosen).reshape(-1).view(torch.uint64)
