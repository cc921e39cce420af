"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): a radius inside which no attack can change the prediction.

The smoothed classifier says the class that the model says most often of x + sigma z. Behind a denoiser it is called
denoised smoothing (Salman et al. 2020): one step of r takes the noise away before the classifier looks. The certificate
is one of this smoothed classifier, queried as here, and not of the chain that ``purify`` runs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.attacks.state import identity_of
from fastmalade.chain.call import langevin_chain
from fastmalade.checks import check_count, check_labelled_images, check_number, check_range
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation.certificate_state import Counts
from fastmalade.models.modes import evaluation_mode
from fastmalade.noise import normals_like
from fastmalade.progress import progress_bar
from fastmalade.seeds import check_sample_ids, check_seed, derive_seed, fresh_seed

SAVE_SECONDS = 60.0
_SELECTION, _ESTIMATION = 0, 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Certificate:
    """What is guaranteed of each image.

    Attributes:
        prediction: int64 (B,): class of the smoothed classifier, -1 where it abstains.
        radius: float64 (B,): within this L2 distance of the image, in units of the model's images, the smoothed
            classifier gives the same class; 0 where it abstains.
        lower_bound: float64 (B,): the class has at least this probability under the noise, each bound wrong with
            probability at most ``alpha``.
        counts: int64 (B,): how often of ``n`` draws the model said the class that the first draws proposed.
        labels: int64 (B,), or None if they were not given.
        sigma, n, n_selection, alpha, seed: how it was computed; the same arguments give the same certificate.
        seconds: wall time, over all resumed parts.
    """

    prediction: Tensor
    radius: Tensor
    lower_bound: Tensor
    counts: Tensor
    labels: Tensor | None
    sigma: float
    n: int
    n_selection: int
    alpha: float
    seed: int
    seconds: float

    def accuracy_at(self, radius: float) -> float:
        """Share of images with the right class guaranteed within ``radius`` (L2); 0 gives the accuracy.

        Raises:
            ValueError: no labels, no image, or a radius that is negative or not finite.
        """
        return float(self.right_at(radius).double().mean())

    def right_at(self, radius: float) -> Tensor:
        """bool (B,): which images have the right class guaranteed within ``radius``; errors of :meth:`accuracy_at`."""
        check_number("radius", radius)
        if self.labels is None:
            raise ValueError("accuracy_at: expected labels, got a certificate made without")
        if len(self.labels) == 0:
            raise ValueError("accuracy_at: expected at least one image, got none")
        return (self.prediction == self.labels) & (self.radius >= radius)

    def linf_radius(self, pixels: int) -> Tensor:
        """float64 (B,): radius in Linf for images of so many numbers, radius / sqrt(C H W).

        This is no more than the inequality of the two norms: the largest Linf ball inside the L2 ball.
        """
        check_count("pixels", pixels, 1)
        return self.radius / math.sqrt(pixels)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            field.name: value.tolist() if isinstance(value, Tensor) else value
            for field, value in ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        }


def smallest_n(alpha: float) -> int:
    """The least number of draws that can certify anything: where all n agree, the bound is alpha^(1/n)."""
    return math.floor(math.log(alpha) / math.log(0.5)) + 1


def certify(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    sigma: float,
    n: int,
    n_selection: int = 100,
    alpha: float = 0.001,
    seed: int | None = None,
    sample_ids: Any = None,
    value_range: tuple[float, float] | None = None,
    batch_size: int = 100,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> Certificate:
    """Certify images by randomised smoothing with Gaussian noise.

    Each image is shown ``n_selection`` times with noise to choose a class, then ``n`` times more to bound its
    probability p from below by Clopper and Pearson's bound p_; the radius is sigma Phi^-1(p_), and where p_ is at most
    one half the certificate abstains. Noise of draw k depends on seed, sample id and k alone, so that neither batch
    size nor the other images change a certificate and a larger n goes on with the same draws.

    Args:
        model: a :class:`fastmalade.DefendedClassifier` with a :class:`fastmalade.Purifier`, whose autoencoder then
            denoises in one step, r(x + sigma z), with neither the chain's noise nor its clamp; or any callable
            (B, C, H, W) -> logits (B, K), which is shown x + sigma z as it is and may be random itself. Modules are
            in eval mode during the call.
        images: (B, C, H, W) float32 or float64 in the model's value range; never written to.
        labels: int64 (B,), for :meth:`Certificate.accuracy_at`.
        sigma: standard deviation of the noise in units of the images, > 0. An autoencoder denoises best at the sigma
            that it was trained with.
        n: draws that bound the probability. Twice the radius takes many times the draws: the bound ends at
            alpha^(1/n).
        n_selection: draws that choose the class.
        alpha: probability, for each image, that its certificate is wrong, 0 < alpha < 1.
        seed: 0 <= seed < 2**64 to repeat a certificate; None draws one, which the result names.
        sample_ids: B integers that number the images for the noise, 0..B-1 by default.
        value_range: (low, high) of the images for a model that is not a DefendedClassifier; (0, 1) by default.
        batch_size: draws of one image classified at once.
        checkpoint: file with the counts, written every minute, after the last image and on an interruption. If it
            exists the run goes on from it, to the same certificate.
        progress: show a progress bar on standard error; or a function called as (images done, images in all).

    Raises:
        TypeError, ValueError: wrong arguments; an n with which nothing can be certified (the message has the smallest
            that can); a model that gives no logits (B, K); a defence other than a Purifier in front.
        CertificateStateError: the checkpoint belongs to another run, or is damaged.
        ModuleNotFoundError: scipy is missing (``pip install 'fastmalade[certify]'``).
    """
    if labels is None:
        check_labelled_images(images, torch.zeros(len(images) if isinstance(images, Tensor) else 0, dtype=torch.int64))
    else:
        check_labelled_images(images, labels)
    sigma, alpha = check_number("sigma", sigma), check_number("alpha", alpha, high=1.0)
    if sigma == 0.0:
        raise ValueError("sigma: expected a positive number, got 0.0")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha: expected 0 < alpha < 1, got {alpha}")
    for name, value in (("n", n), ("n_selection", n_selection), ("batch_size", batch_size)):
        check_count(name, value, 1)
    if n < smallest_n(alpha):
        raise ValueError(
            f"n: expected at least {smallest_n(alpha)}, with fewer draws nothing can be certified at alpha {alpha:g}; "
            f"got {n}"
        )
    _clopper_pearson(1, 1, alpha)  # missing packages are reported before the work
    base, low_high = _base_classifier(model, value_range)
    images = check_range(images, low_high).detach()
    ids = check_sample_ids(sample_ids, len(images), images.device)
    seed = fresh_seed() if seed is None else check_seed(seed)
    path = None if checkpoint is None else Path(checkpoint)
    counts = Counts(len(images))
    if path is not None:
        settings = {"sigma": sigma, "n": n, "n_selection": n_selection, "seed": seed}
        counts = Counts.of_run(path, identity_of(settings, model, images, torch.zeros(0), ids), len(images))
    run = _Run(base, images, ids, seed, sigma, batch_size, counts, path)
    with torch.no_grad(), evaluation_mode(model):
        run.to_the_end(n_selection, n, progress)
    bounds = [_clopper_pearson(k, n, alpha) for k in counts.agreeing]
    quantile = NormalDist().inv_cdf
    return Certificate(
        prediction=torch.tensor(
            [c if p > 0.5 else -1 for c, p in zip(counts.proposed, bounds, strict=True)], dtype=torch.int64
        ),
        radius=torch.tensor([sigma * quantile(p) if p > 0.5 else 0.0 for p in bounds], dtype=torch.float64),
        lower_bound=torch.tensor(bounds, dtype=torch.float64),
        counts=torch.tensor(counts.agreeing, dtype=torch.int64),
        labels=None if labels is None else labels.cpu().clone(),
        sigma=sigma,
        n=n,
        n_selection=n_selection,
        alpha=alpha,
        seed=seed,
        seconds=counts.seconds,
    )


class _Run:
    """The counting, image by image, in batches of draws."""

    def __init__(
        self,
        base: Callable[[Tensor], Tensor],
        images: Tensor,
        ids: Tensor,
        seed: int,
        sigma: float,
        batch_size: int,
        counts: Counts,
        checkpoint: Path | None,
    ) -> None:
        self.base, self.images, self.ids, self.seed, self.sigma = base, images, ids, seed, sigma
        self.batch_size, self.counts, self.checkpoint = batch_size, counts, checkpoint

    def to_the_end(self, n_selection: int, n: int, progress: bool | Progress) -> None:
        """Count the images that are not counted yet."""
        total, saved = len(self.images), time.monotonic()
        with progress_bar(enabled=progress is True) as bar:
            task = bar.add_task("certificates", total=total, completed=self.counts.done)
            try:
                while self.counts.done < total:
                    begun = time.monotonic()
                    index = self.counts.done
                    votes = self._votes(index, _SELECTION, n_selection)
                    proposed = int(votes.argmax())
                    agreeing = int(self._votes(index, _ESTIMATION, n)[proposed])
                    self.counts.add(proposed, agreeing, time.monotonic() - begun)
                    bar.update(task, completed=self.counts.done)
                    if callable(progress):
                        progress(self.counts.done, total)
                    if self.checkpoint is not None and time.monotonic() - saved >= SAVE_SECONDS:
                        self.counts.save(self.checkpoint)
                        saved = time.monotonic()
            finally:
                if self.checkpoint is not None:
                    self.counts.save(self.checkpoint)

    def _votes(self, index: int, purpose: int, n: int) -> Tensor:
        """int64 (K,): how often the model says each class of one image under n draws of noise."""
        image, said, classes = self.images[index : index + 1], [], 0
        # A seed for each image and its draws as ids: a batch is draws of one image, and n may grow.
        seed = derive_seed(self.seed, int(self.ids[index]) % 2**64, purpose)
        for first in range(0, n, self.batch_size):
            draws = torch.arange(first, min(first + self.batch_size, n), device=image.device)
            noise = normals_like(image, seed, draws, 0, image.shape[1:])
            logits = self.base(torch.add(image, noise, alpha=self.sigma))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(draws):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(f"model: expected logits of shape ({len(draws)}, K), got {got}")
            classes = logits.shape[1]
            said.append(logits.argmax(1).cpu())
        return torch.bincount(torch.cat(said), minlength=classes)


class _Denoised(nn.Module):
    """The classifier behind one step of the autoencoder: f(r(x)), images in the purifier's value range."""

    def __init__(self, purifier: Purifier, classifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K)."""
        purifier = self.purifier
        low, high = purifier.value_range
        unit = x if (low, high) == (0.0, 1.0) else (x - low) / (high - low)
        denoised = langevin_chain(unit, purifier.autoencoder, [1.0], [0.0], backend=purifier.backend)
        return self.classifier(denoised if unit is x else denoised * (high - low) + low)


def _base_classifier(
    model: Callable[[Tensor], Tensor], value_range: tuple[float, float] | None
) -> tuple[Callable[[Tensor], Tensor], tuple[float, float]]:
    """What is shown the noisy images, and the range of the clean ones."""
    if not isinstance(model, DefendedClassifier):
        if not callable(model):
            raise TypeError(f"model: expected a module or callable, got {type(model).__name__}")
        return model, (0.0, 1.0) if value_range is None else value_range
    if value_range is not None and value_range != model.purifier.value_range:
        raise ValueError(f"value_range: expected the defence's {model.purifier.value_range}, got {value_range}")
    if not isinstance(model.purifier, Purifier):
        raise ValueError(
            f"model: expected a DefendedClassifier with a Purifier, whose autoencoder denoises, got one with "
            f"{type(model.purifier).__name__}; a callable that takes noisy images can be certified as it is"
        )
    return _Denoised(model.purifier, model.classifier), model.purifier.value_range


def _clopper_pearson(successes: int, n: int, alpha: float) -> float:
    """The lower end of the one-sided interval of a proportion, wrong with probability at most alpha."""
    try:
        from scipy.stats import beta
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("certify needs scipy: pip install 'fastmalade[certify]'") from missing
    return 0.0 if successes == 0 else float(beta.ppf(alpha, successes, n - successes + 1))
