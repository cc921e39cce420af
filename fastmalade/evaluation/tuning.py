"""Search for a chain's settings on validation images (never on test images), under attackers who know the chain.

Paper 000, section 5.3 and paper 001, B.2.2 say that these were tuned by hand on training or validation data; here it is
a seeded random search followed by a local one, so that it can be repeated. Images that were attacked without the chain
choose chains that such an attacker fears; attacks through the chain are what a defence is for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.attacks import Attack
from fastmalade.chain.config import ChainConfig
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation.accuracy import accuracy
from fastmalade.files import append_line
from fastmalade.models import Autoencoder
from fastmalade.training.loop import CheckpointError

# The first few of the local search judge the best of the coarse one on all images; the rest vary the best so far.
_REJUDGED = 6


@dataclass(frozen=True)
class TuningResult:
    """One tried setting.

    Attributes:
        chain: the setting.
        stage: "coarse" if it was judged on a few images, else "full".
        accuracies: by condition, "clean" and the attacked ones, and by attack; fractions of single queries.
        score: of the mean accuracy under the attacked conditions and the accuracy under each attack, half the lowest
            and half the mean, less ten times the clean accuracy lost beyond ``clean_loss``. The worst attack counts
            most; where chains are equal under it, the others decide.
    """

    chain: ChainConfig
    stage: str
    accuracies: dict[str, float]
    score: float

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "chain": self.chain.to_dict(),
            "stage": self.stage,
            "accuracies": dict(self.accuracies),
            "score": self.score,
        }


@dataclass(frozen=True)
class ChainSearch:
    """What :func:`tune_chain` tries, and on how many images.

    Attributes:
        n_steps: the numbers of steps that are tried.
        clean_loss: how much of the bare classifier's accuracy on the same clean images robustness may cost; settings
            that cost more are penalised.
        n_random: settings drawn at random, judged on a few images.
        n_local: settings judged on all images: the best of those, then variations of the best.
        coarse_images: a random setting is judged on the first so many images of each condition.
        coarse_attacked_images: and so many of the clean images, the last ones, are attacked through its chain.
        attacked_images: the same for a setting that is judged on all images.
        sigma2: of the autoencoder's training; with it every other random setting has noise between a quarter and all of
            what Langevin dynamics has for its step, d = sqrt(2 a sigma^2) (000, eq. 10, a = alpha / sigma^2).
        seed: of the search and of the chains' noise.
    """

    n_steps: tuple[int, ...] = (10,)
    clean_loss: float = 0.012
    n_random: int = 40
    n_local: int = 20
    coarse_images: int = 500
    coarse_attacked_images: int = 40
    attacked_images: int = 100
    sigma2: float | None = None
    seed: int = 0
    starts: tuple[ChainConfig, ...] = field(default=())

    def random_chain(self, index: int, generator: torch.Generator) -> ChainConfig:
        """The random setting number ``index``."""
        n_steps = self.n_steps[index % len(self.n_steps)]
        step_size = _uniform(0.1, 2.0, generator)
        noise_scale = math.exp(_uniform(math.log(0.01), math.log(0.5), generator))
        if self.sigma2 is not None and index // len(self.n_steps) % 2 == 1:
            noise_scale = _uniform(0.25, 1.0, generator) * math.sqrt(2.0 * step_size * self.sigma2)
        return ChainConfig(
            n_steps=n_steps,
            step_size=step_size,
            noise_scale=noise_scale,
            decay=_uniform(0.0, 2.0, generator),
            offset=math.exp(_uniform(0.0, math.log(10.0), generator)),
            clamp=("final", "every_step")[int(_uniform(0, 2, generator))],  # type: ignore[arg-type]
        )


def tune_chain(
    autoencoder: Autoencoder,
    classifier: nn.Module,
    conditions: Mapping[str, tuple[Tensor, Tensor]],
    search: ChainSearch | None = None,
    *,
    attacks: Mapping[str, Attack] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, TuningResult], None] | None = None,
) -> list[TuningResult]:
    """Search chain settings.

    Args:
        autoencoder: r(x).
        classifier: judges the purified images.
        conditions: name -> (images (n, C, H, W) in [0, 1], labels (n,)); one is "clean", the others are attacked.
        search: what is tried; the defaults of :class:`ChainSearch` when None.
        attacks: name -> attack on the chain and the classifier, run on clean images.
        checkpoint: a file of JSON lines, one for every setting tried; settings found there are not judged again.
        progress: called as (settings tried, settings in all, result).

    Returns:
        Every setting that was tried: those judged in full first, best first, then the coarse ones likewise.

    Raises:
        ValueError: no condition called "clean", or no other.
        CheckpointError: the file is of another search.
    """
    search = ChainSearch() if search is None else search
    attacks = {} if attacks is None else attacks
    if "clean" not in conditions or len(conditions) < 2:
        raise ValueError(f"expected a condition 'clean' and attacked ones, got {sorted(conditions)}")
    judge = _Judge(autoencoder, classifier, conditions, search, attacks)
    known = {} if checkpoint is None else _known(Path(checkpoint), judge.identity())
    total = search.n_random + len(search.starts) + search.n_local
    results: list[TuningResult] = []
    for chain, stage in _settings(search, results):
        found = known.get((json.dumps(chain.to_dict()), stage))
        result = judge(chain, stage) if found is None else found
        results.append(result)
        if found is None and checkpoint is not None:
            append_line(checkpoint, json.dumps(result.to_json()))
        if progress is not None:
            progress(len(results), total, result)
    return sorted(results, key=lambda r: (r.stage == "full", r.score), reverse=True)


def _settings(search: ChainSearch, results: list[TuningResult]) -> Iterator[tuple[ChainConfig, str]]:
    """The next setting and its stage, in view of the ``results`` so far, to which the caller adds each one's."""
    generator = torch.Generator().manual_seed(search.seed)
    drawn = [search.random_chain(index, generator) for index in range(search.n_random)]
    for chain in (*search.starts, *drawn):
        yield chain, "coarse"
    coarse = sorted(results, key=lambda r: r.score, reverse=True)
    for index in range(search.n_local):
        if index < min(_REJUDGED, len(coarse)):
            yield coarse[index].chain, "full"
        else:
            best = max((r for r in results if r.stage == "full"), key=lambda r: r.score)
            yield _varied(best.chain, generator), "full"


class _Judge:
    def __init__(
        self,
        autoencoder: Autoencoder,
        classifier: nn.Module,
        conditions: Mapping[str, tuple[Tensor, Tensor]],
        search: ChainSearch,
        attacks: Mapping[str, Attack],
    ) -> None:
        self.autoencoder, self.classifier, self.conditions = autoencoder, classifier, conditions
        self.search, self.attacks = search, attacks
        self.bare: dict[int | None, float] = {}

    def identity(self) -> dict[str, Any]:
        """What a file of results must agree with, besides the settings themselves."""
        return {
            "conditions": {name: len(labels) for name, (_, labels) in self.conditions.items()},
            "coarse_images": self.search.coarse_images,
            "coarse_attacked_images": self.search.coarse_attacked_images,
            "attacked_images": self.search.attacked_images,
            "clean_loss": self.search.clean_loss,
            "seed": self.search.seed,
            "attacks": {name: attack.settings() for name, attack in self.attacks.items()},
            "weights": [float(weight.double().sum()) for weight in self.autoencoder.weights()],
        }

    def __call__(self, chain: ChainConfig, stage: str) -> TuningResult:
        purifier = Purifier(self.autoencoder, chain)
        search, coarse = self.search, stage == "coarse"
        limit = search.coarse_images if coarse else None
        accuracies = {}
        for name, (images, labels) in self.conditions.items():
            images, labels = images[:limit], labels[:limit]
            with torch.no_grad():
                purified = purifier(images, seed=search.seed)
            accuracies[name] = accuracy(self.classifier, purified, labels) / len(labels)
        transferred = [value for name, value in accuracies.items() if name != "clean"]
        parts = [sum(transferred) / len(transferred)]
        attacked = search.coarse_attacked_images if coarse else search.attacked_images
        defended = DefendedClassifier(purifier, self.classifier)
        images, labels = (part[-attacked:] for part in self.conditions["clean"])
        for name, attack in self.attacks.items():
            result = attack(defended, images, labels, progress=False)
            accuracies[name] = 1.0 - float(result.success_rate.mean())
            parts.append(accuracies[name])
        shortfall = max(0.0, self._bare(limit) - search.clean_loss - accuracies["clean"])
        score = (min(parts) + sum(parts) / len(parts)) / 2
        return TuningResult(chain, stage, accuracies, score - 10.0 * shortfall)

    def _bare(self, limit: int | None) -> float:
        """Accuracy of the bare classifier on the clean images of a stage."""
        if limit not in self.bare:
            images, labels = (part[:limit] for part in self.conditions["clean"])
            self.bare[limit] = accuracy(self.classifier, images, labels) / len(labels)
        return self.bare[limit]


def _known(path: Path, identity: dict[str, Any]) -> dict[tuple[str, str], TuningResult]:
    """Results in a file, by setting and stage; a new file is begun with the identity of its search."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, json.dumps(identity))
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    try:
        if json.loads(first) != json.loads(json.dumps(identity)):
            raise CheckpointError(f"{path} is of another search; delete it or name another file")
        rows = [json.loads(line) for line in lines]
        return {
            (json.dumps(row["chain"]), row["stage"]): TuningResult(
                ChainConfig.from_dict(row["chain"]), row["stage"], row["accuracies"], row["score"]
            )
            for row in rows
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected the results of a search, one a line; {error}") from error


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _varied(chain: ChainConfig, generator: torch.Generator) -> ChainConfig:
    def factor(spread: float) -> float:
        return math.exp(_uniform(-spread, spread, generator))

    return replace(
        chain,
        step_size=min(2.0, chain.step_size * factor(0.3)),
        noise_scale=chain.noise_scale * factor(0.4),
        decay=max(0.0, chain.decay + _uniform(-0.4, 0.4, generator)),
        offset=chain.offset * factor(0.4),
    )
