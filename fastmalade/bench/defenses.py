"""``fastmalade bench defenses``: time per image of MALADE and of its rivals, taking turns in one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.bench import machine
from fastmalade.bench.defense_forms import Place, fastest, float32_convolutions, place
from fastmalade.bench.results import new_result, save
from fastmalade.bench.runner import SCREENING_SECONDS, Report
from fastmalade.bench.timing import Call, interleaved, summarise
from fastmalade.data import embedded_digits
from fastmalade.defenses import Apudae, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.defenses.base import Defense
from fastmalade.defenses.purifier import Purifier
from fastmalade.models.gan import GanGenerator

FORMAT = 1
PAPER_SECONDS = {10: (0.008, 0.043), 25: (0.016, 0.070), 50: (0.028, 0.137)}
"""N = L: seconds of MALADE and of Defense-GAN with R = 1 on a TITAN V (000 Table 6)."""
GAN_STEPS = 200
# MALADE by its backend, the first on each device the one that the rivals are compared with.
_MALADE = {
    "cpu": {"malade native": "cpu", "malade eager": "torch"},
    "cuda": {"malade cuda": "cuda", "malade triton": "triton", "malade eager": "torch"},
}
_RIVALS = ("defense-gan R=1", "defense-gan width 64 R=1")


@dataclasses.dataclass(frozen=True)
class DefenseSettings:
    """Choices of a run.

    Attributes:
        batches: images per call.
        steps: values of N and L.
        restarts: values of Defense-GAN's R.
        threads: numbers of threads, each a part of the run that is held to as many processors; none for 1 and 2. On a
            GPU, where they only launch, there is one part and nothing is held.
        seconds: budget of each defence in each cell.
        longest: calls that take longer, in seconds, are timed once and not in turns.
        compiled: also try each rival with its network through ``torch.compile``.
        contenders: names, or none for all.
        device: "cpu" or "cuda", the current CUDA device.
        limit: seconds after which no cell is begun any more; None for all cells.

    Raises:
        ValueError: a count that is not positive, nothing to do, numbers of threads on a GPU, or an unknown name.
    """

    batches: tuple[int, ...] = (1, 64)
    steps: tuple[int, ...] = (10, 25, 50)
    restarts: tuple[int, ...] = (1, 10)
    threads: tuple[int, ...] = ()
    seconds: float = 5.0
    longest: float = 20.0
    compiled: bool = True
    contenders: tuple[str, ...] = ()
    device: str = "cpu"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.device not in _MALADE:
            raise ValueError(f"device: expected {' or '.join(_MALADE)}, got {self.device!r}")
        if self.threads and self.device == "cuda":
            raise ValueError(f"threads: expected none on cuda, where they only launch, got {self.threads}")
        for name in ("batches", "steps", "restarts", "threads"):
            values = getattr(self, name)
            if (not values and name != "threads") or min(values, default=1) < 1:
                raise ValueError(f"{name}: expected at least one number, each at least 1, got {values}")
        if not (self.seconds >= 0 and self.longest > 0):
            raise ValueError(f"seconds, longest: expected >= 0 and > 0, got {self.seconds} and {self.longest}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit: expected a positive number of seconds, got {self.limit}")
        unknown = set(self.contenders) - set(self.names())
        if unknown:
            raise ValueError(f"contenders: expected any of {', '.join(self.names())}, got {', '.join(sorted(unknown))}")

    def names(self) -> list[str]:
        """All contenders, in the order of the tables."""
        searches = [f"{gan} R={r}" for gan in ("defense-gan", "defense-gan width 64") for r in self.restarts]
        return [*_MALADE[self.device], "magnet", *searches, "inc", "dip-inc", "apudae", "apudae table 8"]

    def chosen(self) -> list[str]:
        """The contenders of this run."""
        return [name for name in self.names() if name in self.contenders] if self.contenders else self.names()


def build(name: str, steps: int) -> Defense:
    """A contender with a number of steps.

    "defense-gan" is the shipped generator, "defense-gan width 64" one of the published size with untrained weights: the
    arithmetic is the same. "apudae" is the autoencoder of 003 Table 1, "apudae table 8" that of MALADE. "dip-inc" never
    stops early.

    Raises:
        ValueError: an unknown name.
    """
    own = {label: backend for labels in _MALADE.values() for label, backend in labels.items()}
    if name in own:
        purifier = Purifier.from_pretrained("malade-mnist", backend=own[name])
        purifier.chain = purifier.chain.replace(n_steps=steps)
        return purifier
    if name == "magnet":
        return MagNet.from_pretrained("magnet-mnist")
    if name.startswith("defense-gan"):
        restarts = int(name.rpartition("=")[2])
        generator = _paper_generator() if "width 64" in name else _network("defense-gan-mnist", "generator")
        return DefenseGan(generator, n_steps=steps, n_restarts=restarts).requires_grad_(False).eval()
    if name == "inc":
        return InvertAndClassify(_network("inc-mnist", "generator"), n_steps=steps).eval()
    if name == "dip-inc":
        return DeepPrior(n_steps=steps, stop_error=0.0).eval()
    if name == "apudae":
        return Apudae(_network("apudae-mnist", "autoencoder"), n_steps=steps).eval()
    if name == "apudae table 8":
        return Apudae(_network("magnet-mnist", "autoencoder"), n_steps=steps).eval()
    raise ValueError(f"contender: expected another name, got {name!r}")


def run(settings: DefenseSettings, *, output: Path | None = None, report: Report | None = None) -> dict[str, Any]:
    """Time all contenders.

    Every form is verified first: it must give what the eager form gives for the same seed, after two steps. In a cell
    (threads, batch, steps) all contenders take turns. On a GPU a call ends when the device has done its work, forms are
    also tried as CUDA graphs, all arithmetic is float32, and a contender that fails is recorded under "failures" with
    its error, while the others go on.

    Args:
        settings: what to measure.
        output: JSON file, rewritten after every cell.
        report: told about progress.

    Returns:
        The result, as written to ``output``: JSON values, times in microseconds per image.

    Raises:
        ValueError: settings that cannot be met on this machine, or on the CPU a form that computes something else.
        BackendUnavailableError: the native kernels of the CPU are not built here.
    """
    where = place(settings.device)
    began = time.monotonic()
    threads_of_parts = (1,) if settings.device == "cuda" else settings.threads or (1, 2)
    choices = {**dataclasses.asdict(settings), "threads": list(threads_of_parts)}
    state = {**new_result("fastmalade bench defenses", FORMAT, choices), "failures": []}
    if where.device.type == "cuda":
        state["machine"]["gpu"] = torch.cuda.get_device_name(where.device)
    names = settings.chosen()
    if "malade native" in names:
        backends.resolve("cpu", device=torch.device("cpu"), dtype=torch.float32)
    # Defense-GAN's own number of steps, for it alone.
    counts = [*settings.steps, *([GAN_STEPS] if GAN_STEPS not in settings.steps else [])]
    cells = [_Cell(threads, batch, n) for threads in threads_of_parts for batch in settings.batches for n in counts]
    for done, cell in enumerate(cells):
        if settings.limit is not None and time.monotonic() - began > settings.limit:
            state["warnings"].append(f"out of time: {len(cells) - done} of {len(cells)} cells were not begun")
            break
        if report is not None:
            report(f"{cell.threads} threads, batch {cell.batch}, N = L = {cell.steps}", done / len(cells))
        wanted = [n for n in names if cell.steps in settings.steps or n.startswith("defense-gan")]
        if wanted:
            with machine.pinned(cell.threads) if settings.device == "cpu" else float32_convolutions():
                state["cells"] += _measured(wanted, cell, settings, where, state["failures"])
        save(state, output)
    else:
        state["complete"] = True
    save(state, output)
    return state


def ratios(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Defense-GAN with R = 1 against MALADE's own kernels at N = L, by cell, beside the paper's own ratio."""
    medians = {
        (c["contender"], c["threads"], c["batch"], c["steps"]): c["us_per_image"]["median"] for c in result["cells"]
    }
    found = []
    for (name, threads, batch, steps), median in medians.items():
        natives = (medians.get((next(iter(labels)), threads, batch, steps)) for labels in _MALADE.values())
        own = next((found for found in natives if found is not None), None)
        if name not in _RIVALS or own is None:
            continue
        seconds = PAPER_SECONDS.get(steps)
        found.append(
            {
                "rival": name,
                "threads": threads,
                "batch": batch,
                "steps": steps,
                "ratio": median / own,
                "paper": None if seconds is None else seconds[1] / seconds[0],
            }
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Cell:
    """What all contenders of a turn are run with: ``steps`` is N or L."""

    threads: int
    batch: int
    steps: int


def _measured(
    names: Sequence[str], cell: _Cell, settings: DefenseSettings, where: Place, failures: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The contenders' rows of one cell, in the order of ``names``; those that fail go to ``failures``."""
    batch = cell.batch
    images = _images(batch).to(where.device)
    calls: dict[str, Call] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        defense = build(name, cell.steps)
        cost = defense.cost(batch)
        screening = min(settings.seconds, SCREENING_SECONDS)
        try:
            form, call, refused = fastest(
                defense.to(where.device), images, where, compiled=settings.compiled, seconds=screening
            )
            started = time.perf_counter()
            call()
            seconds = time.perf_counter() - started
        except Exception as error:
            if settings.device == "cpu":
                raise
            # Compilers, drivers and memory are the device's own: the figures of the others still count.
            text = f"{type(error).__name__}: {error}"
            failures.append({"contender": name, "batch": batch, "steps": cell.steps, "error": text})
            continue
        rows[name] = {
            "contender": name,
            **dataclasses.asdict(cell),
            "form": form,
            "refused": refused,
            "flops_per_image": cost.flops // batch,
            "forward_evaluations_per_image": cost.forward_evaluations // batch,
            "gradient_evaluations_per_image": cost.gradient_evaluations // batch,
        }
        if seconds > settings.longest:
            rows[name]["us_per_image"] = dataclasses.asdict(summarise([seconds], batch, 1))
        else:
            calls[name] = call
    if calls:
        for name, summary in interleaved(calls, batch, seconds=settings.seconds).items():
            rows[name]["us_per_image"] = dataclasses.asdict(summary)
    return list(rows.values())


def _images(batch: int) -> Tensor:
    digits = embedded_digits()[0].astype(np.float32)[:, None] / 255
    return torch.from_numpy(np.ascontiguousarray(np.resize(digits, (batch, 1, 28, 28))))


def _network(name: str, part: str) -> nn.Module:
    network = getattr(Defense.from_pretrained(name), part)
    assert isinstance(network, nn.Module)
    return network


def _paper_generator() -> GanGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GanGenerator(width=64)
