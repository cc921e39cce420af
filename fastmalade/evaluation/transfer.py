"""Transferred attacks: images attacked against the bare classifier, purified, then classified.

The attacker does not know the defence, so these figures bound robustness from above; attacks through the purifier are
the honest ones and are reported beside them.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastmalade.evaluation.accuracy import accuracy
from fastmalade.evaluation.foolbox_attacks import ATTACK_CHUNK, AttackName, attacked
from fastmalade.files import write_bytes

Purify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TransferRow:
    """One line of the table.

    Attributes:
        attack: "none", "fgsm" or "pgd".
        epsilon: Linf radius.
        n: number of images.
        correct: right answers out of n, by column: "bare" and the names of the purifiers.
    """

    attack: str
    epsilon: float
    n: int
    correct: dict[str, int]


def transfer_table(
    classifier: nn.Module,
    purifiers: Mapping[str, Purify],
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[tuple[AttackName, float]],
    *,
    steps: int = 40,
    step_size: float = 0.01,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    counted: Callable[[TransferRow, Tensor], None] | None = None,
) -> list[TransferRow]:
    """Accuracy of a classifier, bare and behind each purifier, on clean and on attacked images.

    Args:
        classifier: (B, C, H, W) in [0, 1] to logits (B, K); the attacks see this alone.
        purifiers: name -> function (n, C, H, W) -> (n, C, H, W); should be deterministic for repeatable figures.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        attacks: (name, epsilon) pairs.
        steps: steps of "pgd".
        step_size: length of each step of "pgd".
        seed: of the attacks.
        cache_dir: attacked images are kept here chunk by chunk and reused, so an interrupted run goes on where it was.
        progress: called as (what, images done, images in all).
        counted: called with each row as soon as it is there, and with the images (n, C, H, W) it was counted on.

    Returns:
        One row for clean images, then one per attack.
    """
    rows = []
    conditions: list[tuple[AttackName | None, float]] = [(None, 0.0), *attacks]
    for attack, epsilon in conditions:
        if attack is None:
            shown = images
        else:
            made = _Made(attack, epsilon, steps, step_size, seed)
            shown = _attacked_in_chunks(classifier, images, labels, made, cache_dir, progress)
        correct = {"bare": accuracy(classifier, shown, labels)}
        correct |= {name: accuracy(classifier, purify(shown), labels) for name, purify in purifiers.items()}
        rows.append(TransferRow(attack or "none", epsilon, len(images), correct))
        if counted is not None:
            counted(rows[-1], shown)
    return rows


def attacked_images(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: AttackName,
    epsilon: float,
    *,
    steps: int = 40,
    step_size: float = 0.01,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Images attacked against the bare classifier, (n, C, H, W); arguments as in :func:`transfer_table`."""
    made = _Made(attack, epsilon, steps, step_size, seed)
    return _attacked_in_chunks(classifier, images, labels, made, cache_dir, progress)


def seeded(purifier: Callable[..., Tensor], seed: int) -> Purify:
    """``purifier`` as a repeatable function without gradient: the noise of image i depends on (seed, i) alone.

    Args:
        purifier: called as purifier(images, seed=seed), such as a :class:`fastmalade.Defense`.
        seed: 0 <= seed < 2**64.
    """

    def purify(images: Tensor) -> Tensor:
        with torch.no_grad():
            return purifier(images, seed=seed)

    return purify


@dataclass(frozen=True)
class _Made:
    """How images were attacked."""

    attack: AttackName
    epsilon: float
    steps: int
    step_size: float
    seed: int

    def folder(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> str:
        """A name that changes with everything the attacked images depend on."""
        what = f"{self.attack} {self.epsilon!r} {self.steps} {self.step_size!r} {self.seed} {ATTACK_CHUNK}"
        digest = hashlib.sha256(what.encode())
        for tensor in (*classifier.state_dict().values(), images, labels):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"{self.attack}-{self.epsilon:g}-{digest.hexdigest()[:16]}"


def _attacked_in_chunks(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    made: _Made,
    cache_dir: str | os.PathLike[str] | None,
    progress: Callable[[str, int, int], None] | None,
) -> Tensor:
    folder = None if cache_dir is None else Path(cache_dir) / made.folder(classifier, images, labels)
    parts = []
    for index, start in enumerate(range(0, len(images), ATTACK_CHUNK)):
        part = slice(start, start + ATTACK_CHUNK)
        stored = None if folder is None else folder / f"{index:05d}.npy"
        if stored is not None and stored.exists():
            parts.append(torch.from_numpy(np.load(stored)))
        else:
            adversarial = attacked(
                classifier,
                images[part],
                labels[part],
                made.attack,
                made.epsilon,
                steps=made.steps,
                step_size=made.step_size,
                seed=made.seed,
                first_chunk=index,
            )
            parts.append(adversarial)
            if stored is not None:
                _store(stored, adversarial.numpy())
        if progress is not None:
            progress(f"{made.attack} {made.epsilon:g}", min(start + ATTACK_CHUNK, len(images)), len(images))
    return torch.cat(parts)


def _store(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, values)
    write_bytes(path, content.getbuffer())
