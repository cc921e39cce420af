"""``fastmalade.evaluate``: a suite of attacks on a model, and checks of whether their figures can be believed."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade.attacks import AttackResult, GradientWarning
from fastmalade.attacks.eot import DEFAULT_MAX_BYTES, cross_entropy_objective, mean_gradient
from fastmalade.attacks.state import KeptImages, identity_of
from fastmalade.attacks.target import Target
from fastmalade.checks import check_count, check_labelled_images, check_range
from fastmalade.files import append_line, write_bytes, write_json
from fastmalade.models.modes import evaluation_mode
from fastmalade.progress import progress_bar
from fastmalade.seeds import check_seed, derive_seed
from fastmalade.suites.binarization import binarization_check
from fastmalade.suites.black_box import square, square_available
from fastmalade.suites.checks_attacks import Found, attack_checks, black_box_check
from fastmalade.suites.checks_model import model_checks
from fastmalade.suites.library_attacks import library_attack, library_attack_missing
from fastmalade.suites.report import Check, EvaluationReport, Row, worst_first
from fastmalade.suites.subject import Subject
from fastmalade.suites.suite import AttackSpec, Suite, load_suite

CLEAN = "none"
BATCH = 100  # images attacked at once; how many rows a model call has is bounded by the attack's max_bytes


def evaluate(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    suite: str | Path | Suite = "sound",
    n_images: int | None = None,
    epsilon: float | None = None,
    norm: str | None = None,
    value_range: tuple[float, float] | None = None,
    shard: tuple[int, int] = (1, 1),
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Attack a model and say whether the result can be trusted.

    Every row is judged by one rule: ``judge_chains`` queries with noise that the attack has not seen (one where nothing
    is random), with the same three scores and the clean images beside them. The checks ask whether the attacks were
    strong enough and the gradients honest; the verdict is the worst of them, and says nothing about how robust the
    model is: read that from the rows.

    Args:
        model: a :class:`fastmalade.DefendedClassifier`, which is attacked with all that the attacker may know, or any
            module or callable (B, C, H, W) -> logits (B, K), which is differentiated as it is. Modules are in eval
            mode meanwhile.
        images: (n, C, H, W) float32 or float64 in the model's value range; never written to.
        labels: int64 (n,).
        suite: "quick" (minutes), "sound" (hours), "mnist-whitebox" (the attacks of 001, Table 1), a TOML file, or a
            :class:`fastmalade.suites.Suite`.
        n_images, epsilon, norm: in place of the suite's; the first so many images are taken.
        value_range: (low, high) of the images for a model that is not a DefendedClassifier; (0, 1) by default.
        shard: (i, n), 1 <= i <= n: the i-th of n parts of these images alone, each image with the noise that it has in
            the whole; :func:`fastmalade.suites.merge_reports` puts the parts together.
        seed: of all attacks and verdicts.
        folder: kept there: the state of each attack, attacked images, ``log.txt``, ``report.json`` and ``report.md``,
            written as they are finished. A run that finds them goes on, to the same result wherever the model is
            deterministic.
        progress: show a progress bar on standard error.

    Returns:
        The report: ``print`` it.

    Raises:
        TypeError, ValueError: wrong arguments, an unknown suite, a model that gives no logits.
        AttackCheckpointError: the folder belongs to another run.
    """
    check_labelled_images(images, labels)
    chosen = load_suite(suite, images=n_images, epsilon=epsilon, norm=norm)
    part = _part(min(len(images), chosen.images), shard)
    images, labels = images[part.start : part.stop].detach(), labels[part.start : part.stop]
    was_training = isinstance(model, nn.Module) and model.training
    with evaluation_mode(model):
        subject = Subject(model, images, value_range)
        images = check_range(images, subject.value_range)
        run = _Evaluation(subject, images, labels, chosen, check_seed(seed), folder, was_training, part)
        return run.run(progress)


def _part(n_images: int, shard: tuple[int, int]) -> range:
    """The images of a shard."""
    index, shards = shard
    check_count("shard", shards, 1)
    if isinstance(index, bool) or not isinstance(index, int) or not 1 <= index <= shards:
        raise ValueError(f"shard: expected (i, n) with 1 <= i <= n, got {shard!r}")
    part = range((index - 1) * n_images // shards, index * n_images // shards)
    if len(part) == 0:
        raise ValueError(f"images: expected at least one, got none in shard {index} of {shards}")
    return part


class _Evaluation:
    def __init__(
        self,
        subject: Subject,
        images: Tensor,
        labels: Tensor,
        suite: Suite,
        seed: int,
        folder: str | os.PathLike[str] | None,
        was_training: bool,
        part: range,
    ) -> None:
        self.subject, self.images, self.labels, self.suite, self.seed = subject, images, labels, suite, seed
        self.folder = None if folder is None else Path(folder)
        self.was_training, self.part = was_training, part
        self.ids = torch.arange(part.start, part.stop, device=images.device)
        self.rows: list[Row] = []
        self.results: dict[str, AttackResult] = {}
        self.checks: list[Check] = []
        self.begun = time.perf_counter()
        self.forecast = 0.0

    def run(self, progress: bool) -> EvaluationReport:
        """All of it."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.checks = model_checks(self.subject, self.images, self.labels, self.was_training)
        differentiable = all(check.name != "gradient exists" or check.status != "FAIL" for check in self.checks)
        specs = [spec for spec in self.suite.attacks if differentiable and self._applies(spec)]
        self._say(f"{self.subject.name}: suite {self.suite.name}, {len(self.images)} images, {len(specs)} attacks")
        self._clean()
        if specs:
            self.forecast = self._forecast(specs)
            self._say(f"at most {self.forecast:.0f} s for the attacks")
        with progress_bar(enabled=progress) as bar:
            for spec in specs:
                self._attack(spec, _task(bar, spec.name))
            share, why_not = self._square(bar)
            if specs:
                found = Found(self.suite, self.rows, self.results)
                self.checks += attack_checks(self.subject, found, self.images, self.labels, self.ids)
                self.checks.append(black_box_check(found, share, why_not))
                self._binarization(bar)
        report = self._report()
        self._write(report)
        self._say(f"{report.verdict} after {report.seconds:.0f} s")
        return report

    def _applies(self, spec: AttackSpec) -> bool:
        missing = None if spec.is_ours else library_attack_missing(spec)
        if missing is not None:
            self._say(f"{spec.name} is left out: {missing}")
        if missing is not None or len(self._images_of(spec)) == 0:
            return False
        if spec.kind == "rpgd" and self.subject.defended is None:
            return False
        if spec.known_noise:
            return self.subject.with_known_noise() is not None
        return spec.gradient == "unrolled" or self.subject.defended is not None

    def _clean(self) -> None:
        """The control: clean images judged by the rule of every row."""
        self._judge(CLEAN, "", self.images, 0.0, 1)

    def _judge(self, name: str, knows: str, shown: Tensor, epsilon: float, purpose: int) -> Tensor:
        """Add the row of images that are there already; the share of fooled queries (n,)."""
        begun, queries = time.perf_counter(), self.suite.judge_chains
        seed = derive_seed(self.seed, purpose)
        share = self.subject.fooled_share(shown, self.labels[: len(shown)], queries, seed, self.ids[: len(shown)])
        ball = (epsilon, self.suite.norm)
        queries = queries if self.subject.is_random else 1
        self._add(Row.judged(name, knows, share, queries, ball=ball, seconds=time.perf_counter() - begun))
        return share

    def _forecast(self, specs: list[AttackSpec]) -> float:
        """Seconds that the attacks take at most: one gradient of a batch, times all that they may ask for."""
        few, truth = self.images[:BATCH], self.labels[:BATCH]
        samples = max(1, round(BATCH / len(few)))
        target = Target(self.subject.model, self.subject.gradient, self.subject.own_range)
        objective = cross_entropy_objective(target, "cross_entropy")
        rows = target.chains_per_call(few, DEFAULT_MAX_BYTES)
        ids = torch.arange(len(few), device=few.device)
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            mean_gradient(objective, few, truth, 0, ids, samples=samples, rows=rows)
            times.append((time.perf_counter() - begun) / (samples * len(few)))
        random = self.subject.is_random
        total = sum(spec.gradients(random) * len(self._images_of(spec)) for spec in specs)
        return times[-1] * total

    def _images_of(self, spec: AttackSpec) -> Tensor:
        """The images that an attack looks at, of those in this part."""
        return self.images if spec.images is None else self.images[: max(0, spec.images - self.part.start)]

    def _attack(self, spec: AttackSpec, advanced: Callable[[int, int], None]) -> None:
        subject, pixels, images = self.subject, self.images[0].numel(), self._images_of(spec)
        labels, ids = self.labels[: len(images)], self.ids[: len(images)]
        if not spec.is_ours:
            self._library_attack(spec, images, labels, ids)
            return
        attack = self.suite.attack(spec, subject.value_range, pixels, random=subject.is_random, seed=self.seed)
        model: Any = subject.with_known_noise() if spec.known_noise else subject.model
        own_range = subject.value_range if spec.known_noise else subject.own_range
        path = None if self.folder is None else self.folder / f"{_slug(spec.name)}.safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)  # a check says it
            result = attack(
                model, images, labels, batch_size=BATCH, sample_ids=ids, value_range=own_range, checkpoint=path,
                progress=advanced,
            )  # fmt: skip
        self.results[spec.name] = result
        self._add(Row.of(spec.name, spec.knows, result, attack.judge_chains))

    def _library_attack(self, spec: AttackSpec, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        """An attack without a ball; its images are kept, and read back by a run that goes on."""
        seed = derive_seed(self.seed, 5)
        path = None if self.folder is None else self.folder / f"{_slug(spec.name)}.safetensors"
        kept = None
        if path is not None:
            settings = {"spec": repr(spec), "seed": seed}
            kept = KeptImages(path, identity_of(settings, self.subject.model, images, labels, ids))
        begun = time.perf_counter()
        made = None if kept is None else kept.read()
        if made is None:
            made = library_attack(self.subject, images, labels, ids, spec, seed)
            if kept is not None:
                kept.write(made)
        lengths = (made - images).flatten(1).double().norm(dim=1)
        share = self.subject.fooled_share(made, labels, self.suite.judge_chains, derive_seed(self.seed, 6), ids)
        longest = float(lengths.max()) if len(lengths) else 0.0
        queries = self.suite.judge_chains if self.subject.is_random else 1
        gradient = spec.gradient if spec.kind in ("cw", "ead") else "none"
        row = Row.judged(
            spec.name, spec.knows, share, queries, gradient=gradient, ball=(round(longest, 4), "l2"),
            gradients=spec.gradients(False), seconds=time.perf_counter() - begun,
        )  # fmt: skip
        self._add(row)

    def _square(self, bar: Any) -> tuple[Tensor | None, str | None]:
        why_not = square_available(self.suite)
        if why_not is not None or self.suite.square is None:
            return None, why_not
        spec = self.suite.square
        few = slice(0, spec.images - self.part.start)
        if few.stop <= 0:
            return None, f"it looks at the first {spec.images} images, which are not in this shard"
        advanced = _task(bar, "Square")
        made = square(
            self.subject, self.images[few], self.labels[few], self.suite, spec, derive_seed(self.seed, 2)
        )  # fmt: skip
        advanced(1, 1)
        return self._judge("Square", "answers to queries only", made, self.suite.epsilon, 4), None

    def _binarization(self, bar: Any) -> None:
        test = self.suite.binarization
        if test is not None:
            advanced, seed = _task(bar, "binarization"), derive_seed(self.seed, 3)
            few = self.images[: max(0, test.images - self.part.start)]
            check = binarization_check(self.subject, few, self.part.start, self.suite, test, seed, advanced)
            self.checks.append(check)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._say(f"{row.attack}: {row.majority} of {row.n} right by majority, {row.seconds:.1f} s")
        self._write(self._report())

    def _report(self) -> EvaluationReport:
        return EvaluationReport(
            model=self.subject.name,
            suite=self.suite.name,
            purpose=self.suite.purpose,
            checks=worst_first(self.checks),
            rows=tuple(self.rows),
            classes=self.subject.classes,
            forecast_seconds=round(self.forecast, 1),
            seconds=round(time.perf_counter() - self.begun, 1),
            settings={
                "seed": self.seed,
                "images": [self.part.start, self.part.stop],
                "epsilon": self.suite.epsilon,
                "norm": self.suite.norm,
                "judge_chains": self.suite.judge_chains,
                "attacks": {name: result.settings for name, result in self.results.items()},
            },
            results=dict(self.results),
            images=self.images,
            labels=self.labels,
        )

    def _write(self, report: EvaluationReport) -> None:
        if self.folder is not None:
            write_json(self.folder / "report.json", report.to_json(), indent=1)
            write_bytes(self.folder / "report.md", report.to_markdown().encode())

    def _say(self, line: str) -> None:
        if self.folder is not None:
            append_line(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")


def _task(bar: Any, name: str) -> Callable[[int, int], None]:
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())
