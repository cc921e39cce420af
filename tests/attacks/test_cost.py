"""Where the time of a gradient goes."""

from __future__ import annotations

import time

import pytest
import torch

from fastmalade import DefendedClassifier
from fastmalade.attacks.cost import gradient_cost


class Slow(torch.nn.Module):
    """A classifier that takes its time, so that its share is known without a clock."""

    def __init__(self, model, seconds):
        super().__init__()
        self.model, self.seconds, self.rows = model, seconds, []

    def forward(self, x):
        self.rows.append(len(x))
        time.sleep(self.seconds)
        return self.model(x)


@pytest.mark.parametrize("gradient", ["unrolled", "bpda"])
def test_the_share_of_a_slow_classifier(purifier, linear, few, gradient):
    slow = Slow(linear, 0.2)
    cost = gradient_cost(DefendedClassifier(purifier, slow), *few, gradient=gradient, samples=3, repeats=1)
    assert 0.5 < cost.classifier_share < 1.2
    assert cost.seconds * 48 >= 0.2
    assert slow.rows == [48, 48]


def test_the_share_of_nothing(purifier, linear, few):
    cost = gradient_cost(DefendedClassifier(purifier, linear), *few, samples=3, repeats=3)
    assert cost.seconds > 0
    assert 0 < cost.classifier_share < 0.9
