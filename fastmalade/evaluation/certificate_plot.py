"""The curve of certified accuracy over the radius."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fastmalade.evaluation.accuracy import wilson_interval
from fastmalade.evaluation.certificate import Certificate
from fastmalade.files import replacing


def draw_curve(certificates: Mapping[str, Certificate], path: str | os.PathLike[str], *, title: str) -> None:
    """Draw the share of images certified right over the L2 radius, with 95% intervals, into a PNG file.

    Args:
        certificates: by the name in the legend, at least one, with labels.
        path: file to write, whole or not at all.
        title: printed above.

    Raises:
        ValueError: a certificate without labels or images.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    furthest = 0.0
    for name, certificate in certificates.items():
        right = certificate.right_at(0.0)
        reached = sorted(certificate.radius[right].tolist())
        furthest = max([furthest, *reached])
        # The share is constant between two radii: a step at each, and the end of the curve at zero.
        radii = [0.0, *reached, (reached[-1] if reached else 0.0) + 1e-6]
        counts = [int(certificate.right_at(radius).sum()) for radius in radii]
        n = len(right)
        bounds = [wilson_interval(count, n) for count in counts]
        (line,) = axes.step(radii, [100 * count / n for count in counts], where="pre", label=name)
        lows, highs = ([100 * bound[end] for bound in bounds] for end in (0, 1))
        axes.fill_between(radii, lows, highs, step="pre", alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlim(0.0, 1.05 * furthest if furthest > 0 else 1.0)
    axes.set_ylim(0.0, 101.0)
    axes.set_xlabel("L2 radius, images in the units of the model")
    axes.set_ylabel("certified accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
