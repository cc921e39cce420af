"""A suite that takes seconds, and a model with something planted in front of it."""

from __future__ import annotations

import pytest
import torch

import fastmalade
from fastmalade.models import in_channels_last
from fastmalade.suites import AttackSpec, BinarizationSpec, SquareSpec, Suite

EXACT = "exact"


@pytest.fixture
def suite():
    return Suite(
        name="test", purpose="seconds", images=16, epsilon=0.3, norm="linf", judge_chains=5, step_share=0.2,
        schedule="cosine",
        attacks=(
            AttackSpec("blind", "the classifier", "blind", steps=10),
            AttackSpec("BPDA", "that there is a purifier", "bpda", steps=10, eot=2),
            AttackSpec(EXACT, "everything but the noise", "unrolled", steps=20, eot=4, restarts=2),
            AttackSpec("half", "everything but the noise", "unrolled", radius=0.5, steps=10, eot=2),
            AttackSpec("unbounded", "everything but the noise", "unrolled", unbounded=True, steps=20, eot=2),
            AttackSpec("known", "the noise too", "unrolled", known_noise=True, steps=10),
        ),
        square=SquareSpec(8, 60),
        binarization=BinarizationSpec(4, 24, 20, 2),
    )  # fmt: skip


@pytest.fixture
def classifier():
    return in_channels_last(fastmalade.load_classifier("mnist-c"))


@pytest.fixture
def some_digits(digits):
    torch.set_num_threads(1)
    return digits[0][:16], digits[1][:16]
