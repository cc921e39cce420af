"""Small tasks, and contenders that do something wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmalade.bench.contenders.base import Contender
from fastmalade.bench.contenders.eager import Eager
from fastmalade.bench.task import Task, make_task


@pytest.fixture
def task() -> Task:
    """Three steps on five images of 1x8x12."""
    return make_task((1, 8, 12), 5, 3)


class Fake(Contender):
    """Eager, with a function laid over what it returns or over the task that it is given."""

    name = "fake"
    title = "fake"

    def __init__(
        self,
        name: str = "fake",
        *,
        result: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        task: Callable[[Task], Task] | None = None,
        reason: str | None = None,
    ) -> None:
        self.own_name, self.result, self.task, self.reason = name, result, task, reason
        self.prepared = 0

    @property
    def key(self) -> str:
        return self.own_name

    @property
    def label(self) -> str:
        return self.own_name

    def unavailable_reason(self) -> str | None:
        return self.reason

    def prepare(self, task, form):
        self.prepared += 1
        chain = Eager().prepare(self.task(task) if self.task else task, "")
        return (lambda images: self.result(chain(images), images)) if self.result else chain


@pytest.fixture
def fake() -> type[Fake]:
    """The class of contenders above."""
    return Fake
