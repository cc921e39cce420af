"""The model under evaluation, and how its noise is held still or left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.attacks.eot import DEFAULT_MAX_BYTES, Judging, judge
from fastmalade.attacks.target import Target
from fastmalade.checks import check_value_range
from fastmalade.defenses.defended import DefendedClassifier, GradientMode

CALLS = 5


class Subject:
    """A model of logits (B, K) of images (B, C, H, W): a DefendedClassifier, another module or any callable.

    Args:
        model: the model.
        images: a few images, for finding out what it is.
        value_range: (low, high) of the images for a model that is not a DefendedClassifier; (0, 1) by default.

    Attributes:
        defended: the model, if it is a DefendedClassifier.
        value_range: (low, high).
        classes: K.
        is_random: whether any of five calls differs.

    Raises:
        TypeError: not callable.
        ValueError: an output that is not (B, K), K >= 2, or a defence that states another gradient than the exact one.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], images: Tensor, value_range: tuple[float, float] | None = None
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or callable, got {type(model).__name__}")
        self.model = model
        self.defended = model if isinstance(model, DefendedClassifier) else None
        if self.defended is not None:
            stated = self.defended.purifier.gradient
            if stated != "unrolled":
                raise ValueError(
                    f"model: expected a defence with an exact gradient, got one with {stated!r}; build it with "
                    "gradient='unrolled'"
                )
            self.value_range = self.defended.purifier.value_range
        else:
            self.value_range = (0.0, 1.0) if value_range is None else check_value_range(value_range)
        few = images[:4]
        with torch.no_grad():
            first = model(few)
            if not isinstance(first, Tensor) or first.ndim != 2 or len(first) != len(few) or first.shape[1] < 2:
                got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
                raise ValueError(f"model: expected logits of shape ({len(few)}, K) with K >= 2, got {got}")
            self.classes = first.shape[1]
            self.is_random = any(not torch.equal(model(few), first) for _ in range(CALLS - 1))

    @property
    def name(self) -> str:
        """Types of the model and of its parts."""
        if self.defended is None:
            return type(self.model).__name__
        return f"{type(self.defended.purifier).__name__} + {type(self.defended.classifier).__name__}"

    @property
    def inner_randomness(self) -> bool:
        """Whether the noise is the model's own affair: random, and no DefendedClassifier, which takes a seed."""
        return self.is_random and self.defended is None

    def logits(self, x: Tensor, seed: int) -> Tensor:
        """Logits for the noise of ``seed``; torch's global generator is put back afterwards."""
        with self._noise(seed):
            found: Tensor = self.model(x, **self._options(x, seed))  # type: ignore[call-arg]
            return found

    def fooled_share(self, x: Tensor, labels: Tensor, queries: int, seed: int, ids: Tensor) -> Tensor:
        """Share of queries with a wrong class, float64 (n,): the rule behind every row and check.

        Args:
            x: (n, C, H, W), clean or attacked.
            labels: int64 (n,).
            queries: of each image; one where nothing is random.
            seed: of the noise, which no attack has seen.
            ids: int64 (n,), which number the images for the noise.
        """
        target = Target(self.model, self.gradient, self.own_range)
        judging = Judging("majority", queries if self.is_random else 1)
        return judge(target, x, labels, seed, ids, judging, rows=target.chains_per_call(x, DEFAULT_MAX_BYTES))[1]

    @property
    def gradient(self) -> GradientMode:
        """The gradient that the model itself has."""
        return "unrolled" if self.defended is None else self.defended.gradient

    @property
    def own_range(self) -> tuple[float, float] | None:
        """The range to tell attacks, which know that of a DefendedClassifier."""
        return None if self.defended is not None else self.value_range

    def with_known_noise(self) -> nn.Module | None:
        """The defence with the same noise at every query and for every image; None where it cannot be held still."""
        if self.defended is None or not self.is_random:
            return None
        return KnownNoise(self.defended)

    def _options(self, x: Tensor, seed: int) -> dict[str, Any]:
        if self.defended is None:
            return {}
        return {"seed": seed, "sample_ids": torch.arange(len(x), device=x.device)}

    @contextlib.contextmanager
    def _noise(self, seed: int) -> Iterator[None]:
        if not self.inner_randomness:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed % 2**63)
            yield


class KnownNoise(nn.Module):
    """A defended classifier that draws the same noise at every query and for every image, so that an attacker knows it.

    Robustness that goes away with it was hidden in the noise.
    """

    def __init__(self, defended: DefendedClassifier) -> None:
        super().__init__()
        self.defended = defended

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        found: Tensor = self.defended(x, seed=0, sample_ids=torch.zeros(len(x), dtype=torch.int64, device=x.device))
        return found


class AsModule(nn.Module):
    """Any callable as a module, which is what attack libraries take."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        found: Tensor = self.model(x)
        return found
