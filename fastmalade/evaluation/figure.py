"""The papers' Figure 2 (000): a digit, the attacked digit, and the steps of MALADE and MALA."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.defenses.purifier import Purifier
from fastmalade.files import write_bytes

RULE = (
    "the first digit of each class, in the order of the sample, that the classifier gets right as it is and "
    "wrong after the attack; the defence plays no part in the choice"
)
_TRUE, _WRONG = "#1b7837", "#b2182b"


@dataclass(frozen=True)
class Picture:
    """One image with what the classifier says of it.

    Attributes:
        title: what it shows, such as "step 5".
        pixels: (H, W) in [0, 1].
        true_probability: of the true class.
        wrong_class: the wrong class with the highest probability.
        wrong_probability: of that class.
    """

    title: str
    pixels: Tensor
    true_probability: float
    wrong_class: int
    wrong_probability: float


@dataclass(frozen=True)
class Walk:
    """One digit: the original, the attacked image, and the steps of each purifier.

    Attributes:
        label: true class.
        start: the original and the attacked image.
        steps: purifier name -> pictures of the steps shown.
    """

    label: int
    start: tuple[Picture, Picture]
    steps: dict[str, list[Picture]]


def choose_digits(classifier: nn.Module, originals: Tensor, attacked: Tensor, labels: Tensor, count: int) -> list[int]:
    """Indices of at most ``count`` digits: the first of each class that was right and is wrong when attacked.

    Args:
        classifier: (B, C, H, W) to logits (B, K).
        originals: (n, C, H, W) float32 in [0, 1].
        attacked: the same images attacked.
        labels: (n,) int64.
        count: number of digits wanted, of different classes, in the order of the sample.
    """
    with torch.no_grad():
        fooled = (classifier(originals).argmax(1) == labels) & (classifier(attacked).argmax(1) != labels)
    chosen: dict[int, int] = {}
    for index in fooled.nonzero().flatten().tolist():
        chosen.setdefault(int(labels[index]), index)
    return sorted(chosen.values())[:count]


def walk(
    classifier: nn.Module,
    purifiers: Mapping[str, Purifier],
    originals: Tensor,
    attacked: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    *,
    seed: int,
) -> list[Walk]:
    """Follow digits through the purifiers, with the noise that each image has in the whole batch.

    Args:
        classifier: (B, C, H, W) in [0, 1] to logits (B, K).
        purifiers: row name -> purifier; shown are its steps 1, N // 2 and N.
        originals, attacked: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64.
        indices: which images; their positions are the sample ids.
        seed: of the noise.
    """
    picked = torch.tensor(indices, dtype=torch.int64)
    true = labels[picked]
    first = _pictures(classifier, "original", originals[picked], true)
    second = _pictures(classifier, "attacked", attacked[picked], true)
    steps: dict[str, list[list[Picture]]] = {}
    with torch.no_grad():
        for name, purifier in purifiers.items():
            states = purifier.trajectory(attacked[picked], seed=seed, sample_ids=picked)
            n_steps = len(states) - 1
            shown = sorted({1, n_steps // 2, n_steps} & set(range(1, n_steps + 1)))
            # The chain may leave the range between steps; the classifier sees what the figure shows.
            columns = [_pictures(classifier, f"step {t}", states[t].clamp(0, 1), true) for t in shown]
            steps[name] = [list(pictures) for pictures in zip(*columns, strict=True)]
    return [
        Walk(int(true[k]), (first[k], second[k]), {name: rows[k] for name, rows in steps.items()})
        for k in range(len(indices))
    ]


def draw_figure(walks: Sequence[Walk], path: Path, *, caption: str) -> None:
    """Draw the walks into a PNG file, two blocks side by side; written beside its final name and renamed.

    Under each image stand the probabilities of the true class (green) and of the strongest wrong class (red).

    Args:
        walks: at least one.
        path: file to write.
        caption: printed at the foot.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = min(2, len(walks))
    block_rows = (len(walks) + blocks - 1) // blocks
    per_walk = max(len(one.steps) for one in walks)
    columns = 2 + max(len(pictures) for one in walks for pictures in one.steps.values())
    # A narrow third column keeps the names of the purifiers clear of the images.
    widths = [1.0, 1.0, 0.22, *[1.0] * (columns - 2)]
    figure = Figure(figsize=(1.3 * (columns + 0.5) * blocks, (1.45 * per_walk + 0.4) * block_rows + 0.6), dpi=110)
    FigureCanvasAgg(figure)
    outer = figure.add_gridspec(
        block_rows, blocks, left=0.015, right=0.985, top=0.965, bottom=0.075, wspace=0.07, hspace=0.2
    )
    for position, one in enumerate(walks):
        # Down the first column of blocks, then down the second: the order of the sample reads like text.
        cell = outer[position % block_rows, position // block_rows]
        grid = cell.subgridspec(per_walk, columns + 1, wspace=0.06, hspace=0.22, width_ratios=widths)
        for row, (name, pictures) in enumerate(one.steps.items()):
            margin = figure.add_subplot(grid[row, 2])
            margin.axis("off")
            margin.text(0.5, 0.5, name, rotation=90, ha="center", va="center", fontsize=9, fontweight="bold")
            shown = list(enumerate(pictures, start=3))
            for column, picture in [*enumerate(one.start), *shown] if row == 0 else shown:
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(picture.pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_title(picture.title if row == 0 else "", fontsize=8, pad=2)
                _probabilities(axes, one.label, picture)
    figure.text(0.5, 0.012, caption, ha="center", va="bottom", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(path, content.getbuffer())


def _pictures(classifier: nn.Module, title: str, images: Tensor, labels: Tensor) -> list[Picture]:
    with torch.no_grad():
        probabilities = classifier(images).softmax(1)
    true = probabilities.gather(1, labels[:, None])[:, 0]
    wrong = probabilities.scatter(1, labels[:, None], -1.0).max(1)
    return [
        Picture(title, images[k].mean(0), float(true[k]), int(wrong.indices[k]), float(wrong.values[k]))
        for k in range(len(images))
    ]


def _probabilities(axes: Any, label: int, picture: Picture) -> None:
    texts = (
        (0.03, "left", _TRUE, label, picture.true_probability),
        (0.97, "right", _WRONG, picture.wrong_class, picture.wrong_probability),
    )
    for x, side, colour, digit, probability in texts:
        winner = probability == max(picture.true_probability, picture.wrong_probability)
        axes.text(
            x,
            -0.05,
            f"{digit}: {probability:.2f}",
            transform=axes.transAxes,
            ha=side,
            va="top",
            fontsize=7.5,
            color=colour,
            fontweight="bold" if winner else "normal",
        )
