"""Where the time of the native chain goes, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType

from rich.table import Table

from fastmalade.backends import BackendUnavailableError
from fastmalade.bench.ceilings import native_module
from fastmalade.bench.flops import stage_flops
from fastmalade.bench.task import Task

FORMS = ("throughput", "quad", "latency")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one step on one image.

    Attributes:
        name: as the kernels call it.
        microseconds: of one image and one step.
        flops: of one image and one step; 0 where none are counted.
    """

    name: str
    microseconds: float
    flops: float

    @property
    def gflops(self) -> float:
        """Rate in GFLOP/s."""
        return self.flops / self.microseconds / 1e3


def stage_times(
    task: Task, isa: str, form: str, *, repeats: int = 200, module: ModuleType | object | None = None
) -> list[Stage]:
    """Time the stages of a form of the native chain on one core.

    Args:
        task: shape and weights.
        isa: instruction set.
        form: "throughput", "quad" or "latency".
        repeats: how often each stage is run.
        module: the extension; the installed one by default.

    Raises:
        ValueError: an unknown form.
        BackendUnavailableError: no extension, or one that cannot time its stages.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    extension = native_module() if module is None else module
    if extension is None:
        raise BackendUnavailableError("stage times: the native extension is not built here")
    measure: Callable[..., Sequence[tuple[str, float]]] | None = getattr(extension, "stage_times", None)
    if measure is None:
        raise BackendUnavailableError("stage times: this build of the native extension cannot time its stages")
    weights = [weight.contiguous() for weight in task.weights]
    addresses = [weight.data_ptr() for weight in weights]
    measured = measure(isa, form, [*task.shape, *task.hidden], addresses, repeats)
    # A stage is named after its convolution, perhaps with what is fused to it: "conv3, update and noise".
    flops = stage_flops(*task.shape, *task.hidden)
    return [Stage(name, seconds * 1e6, flops.get(name.split(",")[0], 0)) for name, seconds in measured]


def stage_table(stages: Sequence[Stage], title: str) -> Table:
    """Microseconds, GFLOP/s and share of each stage, and their sum."""
    total = sum(stage.microseconds for stage in stages)
    table = Table(title=title)
    table.add_column("stage")
    for heading in ("us per image and step", "GFLOP/s", "share"):
        table.add_column(heading, justify="right")
    for stage in stages:
        rate = f"{stage.gflops:.1f}" if stage.flops else "-"
        table.add_row(stage.name, f"{stage.microseconds:.3f}", rate, f"{100 * stage.microseconds / total:.1f}%")
    whole = Stage("sum", total, sum(stage.flops for stage in stages))
    table.add_row(whole.name, f"{total:.3f}", f"{whole.gflops:.1f}", "100.0%")
    return table
