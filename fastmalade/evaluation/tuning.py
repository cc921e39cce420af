"""Search for a chain's step size, noise, decay and off-set on validation images (never on test images).

Paper 000, section 5.3 and paper 001, B.2.2 say that these were tuned by hand on training or validation data; here it is
a seeded random search followed by a local one, so that it can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastmalade.chain.config import ChainConfig
from fastmalade.defenses.purifier import Purifier
from fastmalade.evaluation.accuracy import accuracy
from fastmalade.models import Autoencoder


@dataclass(frozen=True)
class TuningResult:
    """One tried setting.

    Attributes:
        chain: the setting.
        accuracies: by condition, "clean" and the attacked ones, as fractions.
        score: mean over the attacked conditions, less ten times what clean accuracy falls short of its floor.
    """

    chain: ChainConfig
    accuracies: dict[str, float]
    score: float


def tune_chain(
    autoencoder: Autoencoder,
    classifier: nn.Module,
    conditions: Mapping[str, tuple[Tensor, Tensor]],
    *,
    n_steps: int = 10,
    clean_floor: float = 0.98,
    n_random: int = 40,
    n_local: int = 20,
    coarse_images: int = 500,
    seed: int = 0,
    starts: Sequence[ChainConfig] = (),
    progress: Callable[[int, int, TuningResult], None] | None = None,
) -> list[TuningResult]:
    """Search chain settings for a given number of steps.

    Args:
        autoencoder: r(x).
        classifier: judges the purified images.
        conditions: name -> (images (n, C, H, W) in [0, 1], labels (n,)); one is "clean", the others are attacked.
        n_steps: N.
        clean_floor: accuracy on purified clean images below which a setting is penalised.
        n_random: settings drawn at random, judged on the first ``coarse_images`` images of each condition.
        n_local: variations of the best one, judged on all images.
        coarse_images: see ``n_random``.
        seed: of the search and of the chains' noise.
        starts: settings tried besides the random ones.
        progress: called as (settings tried, settings in all, result).

    Returns:
        All settings that were judged on all images, best first.

    Raises:
        ValueError: no condition called "clean", or no other.
    """
    if "clean" not in conditions or len(conditions) < 2:
        raise ValueError(f"expected a condition 'clean' and attacked ones, got {sorted(conditions)}")
    generator = torch.Generator().manual_seed(seed)
    total = n_random + len(starts) + n_local
    done = 0

    def judge(chain: ChainConfig, limit: int | None) -> TuningResult:
        nonlocal done
        purifier = Purifier(autoencoder, chain)
        accuracies = {}
        for name, (images, labels) in conditions.items():
            images, labels = images[:limit], labels[:limit]
            with torch.no_grad():
                purified = purifier(images, seed=seed)
            accuracies[name] = accuracy(classifier, purified, labels) / len(labels)
        attacked = [value for name, value in accuracies.items() if name != "clean"]
        shortfall = max(0.0, clean_floor - accuracies["clean"])
        result = TuningResult(chain, accuracies, sum(attacked) / len(attacked) - 10.0 * shortfall)
        done += 1
        if progress is not None:
            progress(done, total, result)
        return result

    drawn = [_random_chain(n_steps, generator) for _ in range(n_random)]
    coarse = sorted((judge(c, coarse_images) for c in (*starts, *drawn)), key=lambda r: r.score, reverse=True)
    fine: list[TuningResult] = []
    for index in range(n_local):
        # The first few re-judge the coarse winners on all images; the rest vary the best found so far.
        if index < min(4, len(coarse)):
            candidate = coarse[index].chain
        else:
            candidate = _varied(max(fine, key=lambda r: r.score).chain, generator)
        fine.append(judge(candidate, None))
    return sorted(fine, key=lambda r: r.score, reverse=True)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _random_chain(n_steps: int, generator: torch.Generator) -> ChainConfig:
    return ChainConfig(
        n_steps=n_steps,
        step_size=_uniform(0.1, 1.2, generator),
        noise_scale=math.exp(_uniform(math.log(0.01), math.log(0.5), generator)),
        decay=_uniform(0.0, 2.0, generator),
        offset=math.exp(_uniform(0.0, math.log(10.0), generator)),
        clamp=("final", "every_step")[int(_uniform(0, 2, generator))],  # type: ignore[arg-type]
    )


def _varied(chain: ChainConfig, generator: torch.Generator) -> ChainConfig:
    def factor(spread: float) -> float:
        return math.exp(_uniform(-spread, spread, generator))

    return replace(
        chain,
        step_size=min(1.5, chain.step_size * factor(0.3)),
        noise_scale=chain.noise_scale * factor(0.4),
        decay=max(0.0, chain.decay + _uniform(-0.4, 0.4, generator)),
        offset=chain.offset * factor(0.4),
    )
