"""The epoch loop shared by all trainings: seeding, learning rate, validation, progress, checkpoint and resume.

Each epoch draws all its randomness (order, noise, dropout) from a seed derived from (seed, epoch). So a run that was
interrupted and resumed, which repeats the unfinished epoch, ends with the same parameters, bit for bit, as one that was
not.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import TextColumn
from torch import Tensor, nn

from fastmalade.files import append_line, write_bytes
from fastmalade.progress import progress_bar

_CHECKPOINT_FORMAT = 1
_LOG_SECONDS = 60.0


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or one of a training with other settings."""


@dataclass
class TrainingReport:
    """Record of a training.

    Attributes:
        settings: the settings it ran with.
        history: one dict per epoch: epoch, learning_rate, train_loss and the validation scores.
        seconds: time spent training, over all parts of a resumed run.
    """

    settings: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def final(self) -> dict[str, float]:
        """Scores after the last epoch (empty when there was none)."""
        return self.history[-1] if self.history else {}


@dataclass(frozen=True)
class LoopSettings:
    """Settings that all trainings share.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; the last, smaller batch of an epoch is used too.
        learning_rate: Adam's rate at the start; it follows half a cosine down to a hundredth of that.
        seed: everything random follows from it.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate!r}")


def run_epochs(
    model: nn.Module,
    settings: LoopSettings,
    n_images: int,
    batch_loss: Callable[[Tensor], Tensor],
    validate: Callable[[], dict[str, float]],
    *,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool,
    label: str,
    extra: dict[str, Any] | None = None,
    optimizer: torch.optim.Adam | None = None,
    begin_step: Callable[[float], None] | None = None,
    clip_norm: float | None = None,
    finished: Callable[[list[dict[str, float]]], bool] | None = None,
    log: bool = True,
) -> TrainingReport:
    """Train ``model`` in place.

    With a checkpoint, the scores of every epoch, and once a minute how far it is, also go to a file beside it with
    ``.log`` after its name; where standard error is no terminal, they go there too instead of a bar.

    Args:
        model: module whose parameters that require grad are trained by Adam.
        settings: see :class:`LoopSettings`.
        n_images: number of training images.
        batch_loss: mean loss of the images at the given indices, int64 (b,).
        validate: scores after an epoch, called in eval mode without gradients.
        checkpoint: file written after each epoch and resumed from when it exists.
        progress: show a progress bar on standard error.
        label: text at the bar.
        extra: facts that a checkpoint must agree with, besides the settings.
        optimizer: instead of Adam with its defaults; a parameter group may have a ``rate_factor`` that multiplies the
            learning rate of the settings.
        begin_step: called before each batch with how far training is, from 0 to 1, for schedules of other things than
            the learning rate.
        clip_norm: longest gradient of all parameters together; a longer one is scaled to it. None: no limit.
        finished: asked after each epoch, with the history so far, whether training may stop early.
        log: write that file; not for a training that is a part of something longer.

    Raises:
        CheckpointError: the checkpoint is of other settings, or damaged.
        FloatingPointError: the loss became NaN or infinite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimizer is None:
        optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    report = TrainingReport(settings=dataclasses.asdict(settings) | {"n_images": n_images} | (extra or {}))
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        _resume(path, model, optimizer, report)
    steps_per_epoch = math.ceil(n_images / settings.batch_size)
    with progress_bar(TextColumn("{task.fields[score]}"), enabled=progress) as bar:
        task = bar.add_task(label, total=settings.epochs * steps_per_epoch, score="")
        bar.update(task, completed=len(report.history) * steps_per_epoch)
        file = path.with_name(path.name + ".log") if path is not None and log else None
        lines = _Log(bar.console if progress else None, file)
        while len(report.history) < settings.epochs and not (finished is not None and finished(report.history)):
            epoch = len(report.history)
            start = time.perf_counter()
            name = f"{label}: epoch {epoch + 1}/{settings.epochs}"

            def advance(step: int, loss: float, name: str = name) -> None:
                bar.advance(task)
                lines.now_and_then(f"{name}, step {step}/{steps_per_epoch}: mean loss {loss:.4g}")

            scores = _one_epoch(model, optimizer, settings, epoch, n_images, batch_loss, advance, begin_step, clip_norm)
            model.eval()
            with torch.no_grad():
                scores |= validate()
            report.history.append(scores)
            report.seconds += time.perf_counter() - start
            shown = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if k not in ("epoch", "learning_rate"))
            bar.update(task, score=shown)
            lines.say(f"{name}: {shown}")
            if path is not None:
                _save(path, model, optimizer, report)
    model.eval()
    return report


class _Log:
    """Lines for the terminal and, with the time, for a file."""

    def __init__(self, console: Console | None, file: Path | None) -> None:
        self.console, self.file, self.last = console, file, time.monotonic()

    def now_and_then(self, text: str) -> None:
        """A line if the last one is a minute old; not for a terminal, which has the bar."""
        if time.monotonic() - self.last >= _LOG_SECONDS:
            self.say(text, self.console is not None and not self.console.is_terminal)

    def say(self, text: str, shown: bool = True) -> None:
        self.last = time.monotonic()
        if self.console is not None and shown:
            self.console.print(text, highlight=False, soft_wrap=True)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.file, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


def _one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    settings: LoopSettings,
    epoch: int,
    n_images: int,
    batch_loss: Callable[[Tensor], Tensor],
    advance: Callable[[int, float], None],
    begin_step: Callable[[float], None] | None,
    clip_norm: float | None,
) -> dict[str, float]:
    steps = math.ceil(n_images / settings.batch_size)
    total = torch.zeros((), dtype=torch.float64)
    model.train()
    # Training must not disturb other randomness in the process: the caller's global generator stays as it was.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(n_images)
        for step in range(steps):
            indices = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            position = (epoch * steps + step) / (settings.epochs * steps)
            rate = settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * position)))
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_factor", 1.0)
            if begin_step is not None:
                begin_step(position)
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss(indices)
            loss.backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm)
            optimizer.step()
            total += loss.detach().double() * len(indices)
            advance(step + 1, float(total) / min(n_images, (step + 1) * settings.batch_size))
    mean = float(total) / n_images
    if not math.isfinite(mean):
        raise FloatingPointError(f"epoch {epoch + 1}: expected a finite training loss, got {mean}")
    return {"epoch": float(epoch + 1), "learning_rate": rate, "train_loss": mean}


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Adam, report: TrainingReport) -> None:
    state = {
        "format": _CHECKPOINT_FORMAT,
        "settings": report.settings,
        "history": report.history,
        "seconds": report.seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getbuffer())


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Adam, report: TrainingReport) -> None:
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: expected a training checkpoint, got {type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != _CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path}: expected a training checkpoint of format {_CHECKPOINT_FORMAT}")
    differing = {
        name: (report.settings.get(name), state["settings"].get(name))
        for name in sorted(report.settings.keys() | state["settings"].keys())
        if report.settings.get(name) != state["settings"].get(name)
    }
    if differing:
        text = ", ".join(f"{name}: expected {new!r}, got {old!r}" for name, (new, old) in differing.items())
        raise CheckpointError(f"{path} was made with other settings ({text}); delete it or name another file")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    report.history = list(state["history"])
    report.seconds = float(state["seconds"])
