"""The figure's digits are chosen by the classifier alone."""

from __future__ import annotations

import torch

from fastmalade.evaluation.figure import choose_digits


class _Brightness(torch.nn.Module):
    """Ten classes by mean brightness."""

    def forward(self, x):
        return -((x.mean(dim=(1, 2, 3))[:, None] - torch.linspace(0.05, 0.95, 10)) ** 2)


def test_digits_are_chosen_by_the_rule():
    labels = torch.tensor([0, 3, 3, 5, 0, 7, 7])
    bright = 0.05 + 0.1 * labels.float()
    originals = bright[:, None, None, None].expand(-1, 1, 4, 4).clone()
    attacked = originals + 0.2
    attacked[1] = originals[1]  # not fooled: the next 3 takes its place
    originals[3] += 0.3  # wrong without an attack: no 5 at all
    assert choose_digits(_Brightness(), originals, attacked, labels, 6) == [0, 2, 5]
    assert choose_digits(_Brightness(), originals, attacked, labels, 2) == [0, 2]
