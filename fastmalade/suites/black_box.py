"""The attack that needs no gradient: Square (Andriushchenko et al. 2020) from ART, judged like every other row."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastmalade.attacks import SeededCalls
from fastmalade.geometry import into_ball
from fastmalade.models.modes import evaluation_mode
from fastmalade.suites.subject import AsModule, Subject
from fastmalade.suites.suite import SquareSpec, Suite


def square_available(suite: Suite) -> str | None:
    """None, or why Square cannot run."""
    if suite.square is None:
        return "not in this suite"
    if suite.norm == "l1":
        return "there is no Square for l1"
    if importlib.util.find_spec("art") is None:
        return "ART is not installed: pip install 'fastmalade[attacks]'"
    return None


def square(subject: Subject, images: Tensor, labels: Tensor, suite: Suite, spec: SquareSpec, seed: int) -> Tensor:
    """Attack images (n, C, H, W) with labels (n,) by so many queries each; the result is in ball and range."""
    import numpy as np
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    model = SeededCalls(subject.defended, seed) if subject.defended is not None else AsModule(subject)
    estimator = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(images.shape[1:]),
        nb_classes=subject.classes,
        clip_values=subject.value_range,
        device_type="gpu" if images.is_cuda else "cpu",
    )
    norm = np.inf if suite.norm == "linf" else 2
    attack = SquareAttack(
        estimator, norm=norm, eps=suite.epsilon, max_iter=spec.queries, batch_size=128, verbose=False
    )  # fmt: skip
    with evaluation_mode(subject.model), _global_numpy_seed(seed), torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        made = torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy())).to(images)
    # ART keeps within the radius up to rounding.
    return into_ball(made, images, suite.epsilon, suite.norm, subject.value_range)


@contextmanager
def _global_numpy_seed(seed: int) -> Iterator[None]:
    """ART draws from numpy's global generator; it is put back afterwards."""
    import numpy as np

    before, logger = np.random.get_state(), logging.getLogger("art")
    level = logger.level
    np.random.seed(seed % 2**32)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        np.random.set_state(before)
        logger.setLevel(level)
