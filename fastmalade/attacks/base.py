"""The loop that all attacks share: batches, restarts, steps, early stop, checkpoints, and the final verdict."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from fastmalade import geometry
from fastmalade.attacks.eot import (
    DEFAULT_MAX_BYTES,
    Judge,
    Judging,
    Objective,
    cross_entropy_objective,
    judge,
    mean_gradient,
)
from fastmalade.attacks.masking import masking_warnings, warn
from fastmalade.attacks.state import AttackResult, RunState, checked_path, identity_of
from fastmalade.attacks.target import Loss, Model, Target
from fastmalade.checks import check_choice, check_count, check_labelled_images, check_number, check_range
from fastmalade.defenses.defended import GradientMode
from fastmalade.geometry import Norm
from fastmalade.models.modes import evaluation_mode
from fastmalade.progress import progress_bar
from fastmalade.seeds import check_sample_ids, check_seed, derive_seed

Noise = Literal["fresh", "fixed"]
Progress = Callable[[int, int], None]

# What a derived seed is for; the restart and the step follow in its path.
_START, _STEP, _SELECT, _JUDGE = range(4)

SAVE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Settings and loop of all gradient attacks. Use a subclass.

    Calling an attack runs it; the same settings, seed, model and images give the same result. Noise depends on sample
    ids, so the batch size changes a result by float rounding only (though a sign can turn rounding of a gradient near
    zero into a whole step of that pixel). Torch's global generator is neither read nor advanced.

    Args:
        epsilon: radius of the ball, in units of the value range; finite, >= 0.
        norm: "linf", "l2" or "l1".
        gradient: the attacker's gradient of a DefendedClassifier, whatever its own is set to: "unrolled" (exact),
            "bpda" (the purifier as the identity) or "blind" (loss and gradient of the bare classifier, as for an
            attacker who does not know of the defence).
        eot: noise draws K over which each gradient is averaged, before any sign; 1 for "blind", which has no noise.
        loss: "cross_entropy" or "margin", see ``per_image_loss``.
        targeted: labels are the classes to reach instead of those to leave.
        noise: "fresh" draws new noise for every step, "fixed" keeps one draw of K for all steps of a restart.
        early_stop: stop attacking an image once its K draws are fooled on average and ``judge_chains`` more queries
            are fooled by the rule ``judge``. Saves time; going on might fool more noise draws.
        judge: "majority" (more than half of the queries) or "mean" (class of the mean softmax).
        judge_chains: queries with fresh noise that decide about success.
        spread: record the cosine between the halves of the draws; needs eot >= 2.
        max_bytes: memory to aim at for one model call.
        seed: of all random numbers of the attack, 0 <= seed < 2**64.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of its range.
    """

    epsilon: float
    norm: Norm = "linf"
    gradient: GradientMode = "unrolled"
    eot: int = 1
    loss: Loss = "cross_entropy"
    targeted: bool = False
    noise: Noise = "fresh"
    early_stop: bool = False
    judge: Judge = "majority"
    judge_chains: int = 9
    spread: bool = False
    max_bytes: int = DEFAULT_MAX_BYTES
    seed: int = 0

    name: ClassVar[str] = "attack"

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", geometry.check_norm(self.norm))
        object.__setattr__(self, "epsilon", check_number("epsilon", self.epsilon))
        check_choice("gradient", self.gradient, get_args(GradientMode))
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("noise", self.noise, get_args(Noise))
        check_choice("judge", self.judge, get_args(Judge))
        check_count("eot", self.eot, 2 if self.spread else 1)
        if self.gradient == "blind" and self.eot != 1:
            raise ValueError(f"eot: expected 1 for gradient 'blind', which has no noise to average, got {self.eot}")
        check_count("judge_chains", self.judge_chains, 1)
        check_count("max_bytes", self.max_bytes, 1)
        check_seed(self.seed)

    @property
    def n_steps(self) -> int:
        """Gradient steps of one restart."""
        return 1

    @property
    def n_restarts(self) -> int:
        """Runs from different starts."""
        return 1

    @property
    def judging(self) -> Judging:
        """How the attack judges its images."""
        return Judging(self.judge, self.judge_chains, self.targeted)

    def settings(self) -> dict[str, Any]:
        """Name and settings of the attack as JSON values."""
        return {"attack": self.name, **dataclasses.asdict(self)}

    def _check_target(self, target: Target) -> None:
        """Raise for a model that this attack cannot take; by default it takes any."""
        return

    def _objective(self, target: Target) -> Objective:
        return cross_entropy_objective(target, self.loss)

    def _start(self, images: Tensor, seed: int, ids: Tensor, value_range: tuple[float, float]) -> Tensor:
        """First iterate (B, C, H, W); each restart has its own ``seed``."""
        return images.clone()

    @abstractmethod
    def _step(self, x: Tensor, ascent: Tensor, memory: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Next iterate before projection, and what to remember; ``ascent`` raises the attacker's objective."""

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int = 256,
        sample_ids: Any = None,
        value_range: tuple[float, float] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Progress = True,
    ) -> AttackResult:
        """Attack images.

        Args:
            model: a :class:`fastmalade.DefendedClassifier`, or any callable (B, C, H, W) -> logits (B, K) with
                independent rows. Its own seed is not used: the attacker knows the defence, not its noise.
                Modules are in eval mode during the call.
            images: (n, C, H, W) float32 or float64 in the model's value range; never written to.
            labels: int64 (n,).
            batch_size: images attacked at once.
            sample_ids: n integers that number the images for the noise, 0..n-1 by default.
            value_range: (low, high) of the images, for a model that is not a DefendedClassifier; (0, 1) by default.
            checkpoint: file that holds the state of the run, written every ``SAVE_SECONDS``, after each batch and on
                an interruption. If it exists the run goes on from it, to bitwise the same result where the model is
                deterministic.
            progress: show a progress bar on standard error; or a function that is called as (steps done, steps in all)
                after each step.

        Raises:
            TypeError, ValueError: a wrong argument, or images outside the value range.
            AttackCheckpointError: the checkpoint belongs to another run, or is damaged.
            RuntimeError: logits that do not depend on the images in autograd's eyes; or the result is not in the ball,
                which would be a defect of the attack.

        Warns:
            GradientWarning: images count as robust whose gradients were zero or not finite.
        """
        target = Target(model, self.gradient, value_range)
        self._check_target(target)
        check_labelled_images(images, labels)
        check_count("batch_size", batch_size, 1)
        images = check_range(images, target.value_range).detach()
        ids = check_sample_ids(sample_ids, len(images), images.device)
        path = checked_path(checkpoint)
        run = _Run(self, target, images, labels, ids, batch_size)
        if path is not None:
            identity = identity_of(self.settings() | {"batch_size": batch_size}, model, images, labels, ids)
            run.keep(lambda state: state.save(path, identity))
            if path.exists():
                run.state = RunState.load(path, identity, images.device)
        with evaluation_mode(model), progress_bar(enabled=progress is True) as bar:
            task = bar.add_task(self.name, total=run.total_steps, completed=run.steps_done)

            def advanced() -> None:
                bar.update(task, completed=run.steps_done)
                if callable(progress):
                    progress(run.steps_done, run.total_steps)

            run.all(advanced)
        state = run.state
        # A ball of one point needs no gradient.
        warnings = () if self.epsilon == 0.0 else _masking(state, self.eot)
        warn(warnings, stacklevel=2)
        geometry.check_inside(state.adversarial, images, self.epsilon, self.norm, target.value_range)
        return AttackResult(
            adversarial=state.adversarial,
            success=state.success,
            success_rate=state.success_rate,
            judged=str(self.judging),
            epsilon=self.epsilon,
            norm=self.norm,
            losses=state.losses,
            spread=state.spread if self.spread else None,
            queries=state.queries,
            gradients=state.gradients,
            seconds=state.seconds,
            settings=self.settings(),
            zero_gradients=state.zero_gradients,
            non_finite_gradients=state.non_finite_gradients,
            warnings=warnings,
        )


class _Run:
    """One run of an attack over all images, from a state that may come from a checkpoint."""

    def __init__(
        self, attack: Attack, target: Target, images: Tensor, labels: Tensor, ids: Tensor, batch_size: int
    ) -> None:
        self.attack = attack
        self.target = target
        self.images, self.labels, self.ids = images, labels, ids
        self.batch_size = batch_size
        self.rows = target.chains_per_call(images, attack.max_bytes)
        self.objective = attack._objective(target)
        self.state = RunState.fresh(images, attack.n_restarts, attack.n_steps, spread=attack.spread)
        self._save: Callable[[RunState], None] | None = None
        self._whole = True
        self._clock = self._saved_at = time.perf_counter()

    def keep(self, save: Callable[[RunState], None]) -> None:
        """Call ``save`` with the state from time to time."""
        self._save = save

    @property
    def total_steps(self) -> int:
        """Steps of all batches and restarts."""
        return math.ceil(len(self.images) / self.batch_size) * self.attack.n_restarts * self.attack.n_steps

    @property
    def steps_done(self) -> int:
        """Steps done or skipped."""
        state, per_restart = self.state, self.attack.n_steps
        batches = math.ceil(state.start / self.batch_size)
        return (batches * self.attack.n_restarts + state.restart) * per_restart + state.step

    def all(self, advanced: Callable[[], None]) -> None:
        """Run to the end; ``advanced`` is called after each step."""
        try:
            while self.state.start < len(self.images):
                self._one_batch(advanced)
                self._tick(save=True)
                advanced()
        except Exception:
            raise
        except BaseException:
            # Ctrl-C, or a signal that became an exception. Between the assignments of one step the state belongs to no
            # step at all: then the file of the step before stays.
            if self._whole:
                self._tick(save=True)
            raise

    @contextmanager
    def _changing(self) -> Iterator[RunState]:
        self._whole = False
        yield self.state
        self._whole = True

    def _one_batch(self, advanced: Callable[[], None]) -> None:
        state, attack = self.state, self.attack
        part = slice(state.start, min(state.start + self.batch_size, len(self.images)))
        images, labels, ids = self.images[part], self.labels[part], self.ids[part]
        if not state.batch:
            state.batch = {
                "settled": torch.zeros(len(images), dtype=torch.bool, device=images.device),
                "best": images.clone(),
                "best_rate": torch.full((len(images),), -1.0, dtype=torch.float64, device=images.device),
            }
        while state.restart < attack.n_restarts:
            if "x" not in state.batch:
                seed = derive_seed(attack.seed, _START, state.restart)
                started = attack._start(images, seed, ids, self.target.value_range)
                state.batch |= {
                    "x": geometry.into_ball(started, images, attack.epsilon, attack.norm, self.target.value_range),
                    "memory": torch.zeros_like(images),
                }
            while state.step < attack.n_steps and not bool(state.batch["settled"].all()):
                self._one_step(part, images, labels, ids)
                self._tick()
                advanced()
            self._end_restart(part, labels, ids)
        seed = derive_seed(attack.seed, _JUDGE)
        success, share = judge(self.target, state.batch["best"], labels, seed, ids, attack.judging, rows=self.rows)
        with self._changing():
            state.queries[part] += attack.judge_chains
            state.adversarial[part] = state.batch["best"]
            state.success[part], state.success_rate[part] = success, share
            state.batch, state.start, state.restart, state.step = {}, part.stop, 0, 0

    def _one_step(self, part: slice, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        """One gradient step of the images of the batch that are not settled; the state changes only at its end."""
        state, attack = self.state, self.attack
        active = (~state.batch["settled"]).nonzero()[:, 0]
        x, y = state.batch["x"][active], labels[active]
        step = 0 if attack.noise == "fixed" else state.step
        found = mean_gradient(
            self.objective,
            x,
            y,
            derive_seed(attack.seed, _STEP, state.restart, step),
            ids[active],
            samples=attack.eot,
            rows=self.rows,
            spread=attack.spread,
        )
        ascent = -found.gradient if attack.targeted else found.gradient
        proposed, memory = attack._step(x, ascent, state.batch["memory"][active], state.step)
        moved = geometry.into_ball(proposed, images[active], attack.epsilon, attack.norm, self.target.value_range)
        stopped = torch.zeros(len(active), dtype=torch.bool, device=x.device)
        confirmations = torch.zeros_like(state.queries[part])
        if attack.early_stop:
            candidates = ((found.probabilities.argmax(1) == y) == attack.targeted).nonzero()[:, 0]
            stopped[candidates] = self._fools(x[candidates], y[candidates], ids[active][candidates], state.step)[0]
            confirmations[active[candidates]] += attack.judge_chains
        where = torch.arange(part.start, part.stop, device=x.device)[active]
        batch = dict(state.batch)
        batch["x"] = batch["x"].index_copy(0, active, torch.where(_column(stopped, x), x, moved))
        batch["memory"] = batch["memory"].index_copy(0, active, memory)
        batch["settled"] = batch["settled"].index_fill(0, active[stopped], True)
        batch["best"] = batch["best"].index_copy(0, active[stopped], x[stopped])
        with self._changing():
            state.losses[state.restart, state.step, where] = found.loss
            if found.spread is not None:
                state.spread[state.restart, state.step, where] = found.spread
            state.queries[where] += attack.eot
            state.gradients[where] += attack.eot
            state.zero_gradients[where] += found.zero
            state.non_finite_gradients[where] += found.non_finite
            state.queries[part] += confirmations
            state.batch = batch
            state.step += 1

    def _end_restart(self, part: slice, labels: Tensor, ids: Tensor) -> None:
        """Keep the last iterate of each image where it fools more queries than earlier restarts did."""
        state, attack = self.state, self.attack
        batch = dict(state.batch)
        open_images = (~batch["settled"]).nonzero()[:, 0]
        last = batch.pop("x")[open_images]
        batch.pop("memory")
        queries = torch.zeros_like(state.queries[part])
        if attack.n_restarts == 1:
            batch["best"] = batch["best"].index_copy(0, open_images, last)
        elif len(open_images):
            fooled, rate = self._fools(last, labels[open_images], ids[open_images], attack.n_steps)
            better = rate > batch["best_rate"][open_images]
            chosen = open_images[better]
            batch["best"] = batch["best"].index_copy(0, chosen, last[better])
            batch["best_rate"] = batch["best_rate"].index_copy(0, chosen, rate[better])
            if attack.early_stop:
                batch["settled"] = batch["settled"].index_fill(0, open_images[fooled], True)
            queries[open_images] += attack.judge_chains
        with self._changing():
            state.queries[part] += queries
            state.batch = batch
            state.restart += 1
            state.step = 0

    def _fools(self, x: Tensor, labels: Tensor, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """:func:`judge` with its own noise, which neither the gradients nor the verdict use."""
        attack = self.attack
        seed = derive_seed(attack.seed, _SELECT, self.state.restart, step)
        return judge(self.target, x, labels, seed, ids, attack.judging, rows=self.rows)

    def _tick(self, *, save: bool = False) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._clock = now
        if self._save is not None and (save or now - self._saved_at >= SAVE_SECONDS):
            self._save(self.state)
            self._saved_at = time.perf_counter()


def _masking(state: RunState, eot: int) -> tuple[str, ...]:
    steps = state.gradients // eot
    return masking_warnings(state.success, steps, state.zero_gradients, state.non_finite_gradients)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1)))
