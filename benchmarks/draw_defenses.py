"""Draw docs/images/defenses.png: digits, the same digits attacked, and what each defence makes of them.

    python benchmarks/draw_defenses.py [--output docs/images/defenses.png]

PGD with eps 0.3 against the bare classifier C, by an attacker who does not know the defence. The digits are chosen
before any defence is run: the first of each class that the classifier gets right as it is and wrong after the attack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fastmalade.data import embedded_tensors
from fastmalade.evaluation import attacked_images
from fastmalade.evaluation.defenses import compared_defenses
from fastmalade.evaluation.figure import choose_digits
from fastmalade.files import replacing
from fastmalade.models import in_channels_last
from fastmalade.models.registry import load_classifier

EPSILON, SEED, COUNT = 0.3, 0, 6
TITLES = {
    "malade": "MALADE",
    "magnet": "MagNet",
    "defense-gan": "Defense-GAN",
    "inc": "INC",
    "autoencode": "autoencode",
    "dip-inc": "DIP-INC",
    "apudae-direct": "APuDAE\ndirect",
    "apudae-A": "APuDAE\nA",
    "apudae-E": "APuDAE\nE",
    "apudae-F": "APuDAE\nF",
}
_RIGHT, _WRONG = "#1b7837", "#b2182b"


def draw(columns: dict[str, tuple[Tensor, Tensor]], labels: Tensor, path: Path) -> None:
    """Draw a grid, one row per digit.

    Args:
        columns: title -> images (n, 1, H, W) in [0, 1] and the classes (n,) that the classifier gives them.
        labels: true classes (n,).
        path: PNG file, written beside its final name and renamed.
    """
    rows = len(labels)
    figure = Figure(figsize=(0.98 * len(columns), 1.1 * rows + 0.75), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, (images, classes)) in enumerate(columns.items()):
        for row in range(rows):
            axes = grid[row][column]
            axes.imshow(images[row, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            right = int(classes[row]) == int(labels[row])
            axes.set_xlabel(
                str(int(classes[row])), fontsize=9, labelpad=2, color=_RIGHT if right else _WRONG, fontweight="bold"
            )
            if row == 0:
                axes.set_title(title, fontsize=8, pad=4)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.45 / figure.get_figheight(), bottom=0.05, hspace=0.28)
    figure.text(
        0.5,
        0.004,
        f"Linf PGD, eps {EPSILON}, against the bare classifier. Below: the class it gives, green where right.",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/defenses.png"))
    arguments = parser.parse_args()
    images, labels = (part[:200] for part in embedded_tensors())
    classifier = in_channels_last(load_classifier("mnist-c"))
    attacked = attacked_images(classifier, images, labels, "pgd", EPSILON, seed=SEED)
    chosen = choose_digits(classifier, images, attacked, labels, COUNT)
    available = compared_defenses()
    columns: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        shown = {"original": images[chosen], "attacked": attacked[chosen]}
        for name, title in TITLES.items():
            print(f"{name} ...", flush=True)
            shown[title] = available[name](attacked[chosen], seed=SEED, sample_ids=chosen)
        for title, pictures in shown.items():
            columns[title] = (pictures, classifier(pictures).argmax(1))
    draw(columns, labels[chosen], arguments.output)


if __name__ == "__main__":
    main()
