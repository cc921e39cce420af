"""``DefendedClassifier``: a purifier and a classifier as one model that attack libraries can attack."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmalade.defenses.base import Defense
from fastmalade.seeds import check_sample_ids, check_seed, signed64

GradientMode = Literal["unrolled", "bpda", "blind"]
Vote = Literal["mean", "majority"]


class DefendedClassifier(nn.Module):
    """classifier(purifier(x)) with a choice of gradient, and a vote over several chains.

    Gradient modes; the value is the same in all three:

    - "unrolled": the exact derivative through all N steps, for the noise that was drawn.
    - "bpda": the purifier counts as the identity on the way back (Athalye et al. 2018, BPDA).
    - "blind": the Jacobian of the classifier at x itself, while the loss is still that of the defended value. For an
      attacker who does not know about the defence at all see ``gradient="blind"`` in :mod:`fastmalade.attacks`.

    The noise is fresh at every call unless ``seed`` is set, and never comes from torch's global generator, which attack
    libraries reseed: an attacker who averages gradients over calls (EOT) really averages over noise.

    Args:
        purifier: the defence: a :class:`fastmalade.Purifier` or another :class:`fastmalade.Defense`.
        classifier: (B, C, H, W) in the purifier's ``value_range`` -> logits (B, K). Its parameters stay frozen or
            trainable as they are; call ``.eval()`` on the whole model before attacking it.
        gradient: "unrolled", "bpda" or "blind".
        n_chains: independent chains per image, run as one batch; chain k of the image with id b has id
            b * n_chains + k.
        vote: "mean" or "majority" of the chains, see :meth:`forward`.
        seed: fixed noise for every call, or None.

    Raises:
        TypeError: wrong type of the purifier, the classifier or n_chains.
        ValueError: unknown gradient or vote, "unrolled" for a defence whose own gradient is BPDA, or n_chains < 1.
    """

    def __init__(
        self,
        purifier: Defense,
        classifier: Callable[[Tensor], Tensor],
        *,
        gradient: GradientMode = "unrolled",
        n_chains: int = 1,
        vote: Vote = "mean",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(purifier, Defense):
            raise TypeError(f"purifier: expected a Purifier or another Defense, got {type(purifier).__name__}")
        if not callable(classifier):
            raise TypeError(f"classifier: expected a module or callable, got {type(classifier).__name__}")
        if gradient not in get_args(GradientMode):
            raise ValueError(f"gradient: expected one of {', '.join(get_args(GradientMode))}, got {gradient!r}")
        check_stated_gradient(purifier, gradient)
        if vote not in get_args(Vote):
            raise ValueError(f"vote: expected one of {', '.join(get_args(Vote))}, got {vote!r}")
        if isinstance(n_chains, bool) or not isinstance(n_chains, int):
            raise TypeError(f"n_chains: expected an int, got {type(n_chains).__name__}")
        if n_chains < 1:
            raise ValueError(f"n_chains: expected n_chains >= 1, got {n_chains}")
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = gradient
        self.n_chains = n_chains
        self.vote = vote
        self.seed = None if seed is None else check_seed(seed)

    def forward(self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None) -> Tensor:
        """Logits of the defended classifier.

        With one chain these are the classifier's own logits. With more, "mean" gives the log of the mean softmax, and
        "majority" gives log((votes + mean softmax) / (n_chains + 1)), whose argmax is the majority, ties broken by the
        mean softmax. Votes have no gradient, so "majority" takes the gradient of "mean" (straight-through).

        Args:
            x: (B, C, H, W) in the purifier's ``value_range``.
            seed: noise of this call; by default the seed of the constructor.
            sample_ids: B integers, 0..B-1 by default.

        Returns:
            (B, K), usable as logits: argmax is the decision, softmax the probabilities of the vote.

        Raises:
            TypeError, ValueError, BackendUnavailableError: see :func:`fastmalade.langevin_chain`.
        """
        return self.logits_and_purified(x, seed=seed, sample_ids=sample_ids)[0]

    def logits_and_purified(
        self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` together with the purified images that it classified, for attacks that use both (R+PGD).

        Args and errors: see :meth:`forward`.

        Returns:
            (B, K) logits, and (B * n_chains, C, H, W) purified images, the chains of an image side by side. These
            carry a gradient with "unrolled" only; in the other two modes the purifier has none.
        """
        seed = self.seed if seed is None else seed
        if self.gradient == "unrolled":
            purified = self._purified(x, seed, sample_ids)
            return self._join(self.classifier(purified)), purified
        with torch.no_grad():
            purified = self._purified(x, seed, sample_ids)
        if self.gradient == "bpda":
            repeated = x.repeat_interleave(self.n_chains, dim=0)
            # The difference is exactly zero: value of the purified images, gradient of the identity.
            return self._join(self.classifier(purified + (repeated - repeated.detach()))), purified
        with torch.no_grad():
            value = self._join(self.classifier(purified))
        if not torch.is_grad_enabled():
            return value, purified
        bare = self.classifier(x)
        # In the units of the value: with several chains these are log-probabilities.
        bare = bare if self.n_chains == 1 else F.log_softmax(bare, dim=1)
        return value + (bare - bare.detach()), purified

    @torch.no_grad()
    def forward_from_device(self, x: Tensor, seed_bits: Tensor, sample_ids: Tensor) -> Tensor:
        """:meth:`forward` without gradient, with a seed that kernels read when they run: what a CUDA graph records.

        Args:
            x: see :meth:`forward`.
            seed_bits: int64 (1,) on the device of ``x``, the bits of the seed; not read where the constructor was given
                a seed.
            sample_ids: int64 (B,) on the device of ``x``.

        Returns:
            (B, K) logits.

        Raises:
            TypeError, ValueError, BackendUnavailableError: see :meth:`Defense.forward_from_device`.
        """
        if self.seed is not None:
            seed_bits = torch.full_like(seed_bits, signed64(self.seed))
        images, ids = self._chains_of(x, sample_ids)
        return self._join(self.classifier(self.purifier.forward_from_device(images, seed_bits, ids)))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"gradient={self.gradient!r}, n_chains={self.n_chains}, vote={self.vote!r}, seed={self.seed}"

    def _purified(self, x: Tensor, seed: int | None, sample_ids: Any) -> Tensor:
        if self.n_chains == 1:
            return self.purifier(x, seed=seed, sample_ids=sample_ids)
        images, ids = self._chains_of(x, check_sample_ids(sample_ids, x.shape[0], x.device))
        # Ids are unsigned, and the product may have passed 2**63.
        return self.purifier(images, seed=seed, sample_ids=ids.view(torch.uint64))

    def _chains_of(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Every image n_chains times, and the id of each chain."""
        if self.n_chains == 1:
            return x, ids
        chains = torch.arange(self.n_chains, device=x.device)
        return x.repeat_interleave(self.n_chains, dim=0), (ids[:, None] * self.n_chains + chains).reshape(-1)

    def _join(self, logits: Tensor) -> Tensor:
        if self.n_chains == 1:
            return logits
        per_chain = F.log_softmax(logits, dim=1).reshape(-1, self.n_chains, logits.shape[1])
        mean = torch.logsumexp(per_chain, dim=1) - math.log(self.n_chains)
        if self.vote == "mean":
            return mean
        votes = F.one_hot(per_chain.argmax(dim=2), logits.shape[1]).sum(dim=1)
        probabilities = mean.detach().exp().clamp_min(torch.finfo(mean.dtype).tiny)
        value = torch.log((votes + probabilities) / (self.n_chains + 1))
        return value + (mean - mean.detach())


def check_stated_gradient(purifier: Defense, gradient: GradientMode) -> None:
    """Raise ValueError if "unrolled" is asked of a defence with another gradient, which would silently be BPDA."""
    if gradient == "unrolled" and purifier.gradient != "unrolled":
        raise ValueError(
            f"gradient: expected {purifier.gradient!r}, which this {type(purifier).__name__} states, got 'unrolled'; "
            f"build it with gradient='unrolled' for the exact derivative"
        )
