"""What an evaluation found: rows of accuracies, checks of the evaluation itself, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fastmalade.attacks import AttackResult
from fastmalade.evaluation.accuracy import percent, wilson_interval

Status = Literal["PASS", "WARN", "FAIL", "N/A"]
SCHEMA = 1
_WORST_FIRST: tuple[Status, ...] = ("FAIL", "WARN", "PASS", "N/A")


@dataclass(frozen=True)
class Check:
    """One question about the evaluation, and its answer.

    Attributes:
        name: of the check, such as "deployed path".
        status: "PASS", "WARN", "FAIL", or "N/A" where the question does not arise or cannot be asked of this model.
        figure: what was measured, as text with its unit.
        explanation: what it means, in a sentence or two.
    """

    name: str
    status: Status
    figure: str
    explanation: str


@dataclass(frozen=True)
class Row:
    """Accuracy under one attack, by three rules; the first row of a report is of clean images by the same rules.

    Attributes:
        attack, knows: the attack and what the attacker knows.
        gradient: kind of gradient, or "none".
        epsilon, norm: the ball; of an attack without one, the longest of its perturbations in L2.
        n: number of images.
        queries: judged queries of each image, with noise the attack has not seen.
        majority: images that most queries get right. Attacks go for this, and leave an image when they have it.
        one_shot: right answers among n single queries to the same images, the mean over all queries, rounded.
        worst: images that all queries get right.
        gradients_per_image: input gradients, every draw counted.
        seconds: wall time over all resumed parts.
    """

    attack: str
    knows: str
    gradient: str
    epsilon: float
    norm: str
    n: int
    queries: int
    one_shot: int
    worst: int
    majority: int
    gradients_per_image: float
    seconds: float

    @classmethod
    def of(cls, attack: str, knows: str, result: AttackResult, queries: int) -> Row:
        """The row of an attack's result."""
        return cls.judged(
            attack, knows, result.success_rate, queries,
            gradient=str(result.settings["gradient"]),
            ball=(result.epsilon, result.norm),
            gradients=float(result.gradients.double().mean()),
            seconds=result.seconds,
        )  # fmt: skip

    @classmethod
    def judged(
        cls,
        attack: str,
        knows: str,
        share: Tensor,
        queries: int,
        *,
        gradient: str = "none",
        ball: tuple[float, str],
        gradients: float = 0.0,
        seconds: float = 0.0,
    ) -> Row:
        """The row of images of which ``share`` (n,) of so many ``queries`` were wrong."""
        return cls(
            attack, knows, gradient, ball[0], ball[1], len(share), queries,
            one_shot=round(float((1.0 - share).sum())),
            worst=int((share == 0).sum()),
            majority=int((share <= 0.5).sum()),
            gradients_per_image=round(gradients, 1),
            seconds=round(seconds, 1),
        )  # fmt: skip

    def accuracy(self, rule: str = "majority") -> float:
        """Accuracy by "majority", "one_shot" or "worst", from 0 to 1."""
        return float(getattr(self, rule)) / self.n

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values, with 95% Wilson intervals."""
        intervals = {
            f"{rule}_95": [round(bound, 5) for bound in wilson_interval(getattr(self, rule), self.n)]
            for rule in ("one_shot", "worst", "majority")
        }
        return dataclasses.asdict(self) | intervals


@dataclass(frozen=True)
class EvaluationReport:
    """Result of :func:`fastmalade.evaluate`; ``print`` it, or look at ``verdict``, ``checks`` and ``rows``.

    Attributes:
        model: name of the model's type, with its parts.
        suite: name of the suite; ``purpose`` is what its figures are good for.
        checks: worst first.
        rows: clean images first, then one for each attack.
        classes: K.
        forecast_seconds: what was expected before the attacks began; ``seconds`` is what they took.
        settings: of suite and call, as JSON values.
        results: the attacks' own results by name of the row: images, losses; not written to JSON.
        images, labels: those evaluated; not written to JSON.
    """

    model: str
    suite: str
    purpose: str
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    classes: int
    forecast_seconds: float
    seconds: float
    settings: dict[str, Any]
    results: dict[str, AttackResult] = field(default_factory=dict, repr=False, compare=False)
    images: Tensor | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def verdict(self) -> Status:
        """The worst status of any check that could be asked: can the accuracies be believed?"""
        return min((check.status for check in self.checks), key=_WORST_FIRST.index, default="N/A")

    def check(self, name: str) -> Check:
        """The check of that name.

        Raises:
            KeyError: there is none.
        """
        for found in self.checks:
            if found.name == name:
                return found
        raise KeyError(f"expected one of {', '.join(c.name for c in self.checks)}, got {name!r}")

    def row(self, attack: str) -> Row:
        """The row of that attack.

        Raises:
            KeyError: there is none.
        """
        for found in self.rows:
            if found.attack == attack:
                return found
        raise KeyError(f"expected one of {', '.join(r.attack for r in self.rows)}, got {attack!r}")

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; ``schema`` counts changes of the format."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "suite": self.suite,
            "purpose": self.purpose,
            "verdict": self.verdict,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "rows": [row.to_json() for row in self.rows],
            "classes": self.classes,
            "forecast_seconds": self.forecast_seconds,
            "seconds": self.seconds,
            "settings": self.settings,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvaluationReport:
        """The report of :meth:`to_json`, without images and results.

        Raises:
            ValueError: not such a report, or of another schema.
        """
        try:
            if values["schema"] != SCHEMA:
                raise ValueError(f"schema: expected {SCHEMA}, got {values['schema']}")
            fields = [field.name for field in dataclasses.fields(Row)]
            rows = tuple(Row(**{name: row[name] for name in fields}) for row in values["rows"])
            checks = tuple(Check(**check) for check in values["checks"])
            plain = ("model", "suite", "purpose", "classes", "forecast_seconds", "seconds", "settings")
            return cls(checks=checks, rows=rows, **{name: values[name] for name in plain})
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a report of fastmalade evaluate, got {error!r}") from error

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [
            f"# {self.verdict}: {self.model}, suite {self.suite}", "",
            f"{len(self.labels) if self.labels is not None else self.rows[0].n} images; {self.purpose}.", "",
            "| attack | knows | radius | one query, % | all queries, % | majority, % | gradients |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for row in self.rows:
            cells = [percent(getattr(row, rule), row.n) for rule in ("one_shot", "worst", "majority")]
            radius = f"{row.epsilon:g} {row.norm}" if row.gradient != "none" else ""
            lines.append(
                f"| {row.attack} | {row.knows} | {radius} | {' | '.join(cells)} | {row.gradients_per_image:g} |"
            )
        lines += [
            "",
            f"95% Wilson intervals; {self.rows[0].queries} queries an image. Attacks go for the majority and leave an "
            "image when they have it.",
            "",
        ]
        lines += ["| check | status | figure | |", "|---|---|---|---|"]
        lines += [f"| {c.name} | {c.status} | {c.figure} | {c.explanation} |" for c in self.checks]
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        head = f"{self.verdict}: {self.model}, suite {self.suite}, {self.rows[0].n} images, {self.seconds:.0f} s"
        width = max(len(row.attack) for row in self.rows)
        rows = [
            f"  {row.attack.ljust(width)}  {percent(row.majority, row.n, sign='%')} majority, "
            f"{100 * row.accuracy('one_shot'):.1f}% one query, {100 * row.accuracy('worst'):.1f}% all {row.queries}"
            for row in self.rows
        ]
        name = max(len(check.name) for check in self.checks)
        checks = [
            f"  {check.status.ljust(4)}  {check.name.ljust(name)}  {check.figure}{': ' if check.figure else ''}"
            f"{check.explanation}"
            for check in self.checks
        ]
        return "\n".join([head, *rows, *checks])


def worst_first(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Checks in the order of a report; those of one status stay as they come."""
    return tuple(sorted(checks, key=lambda check: _WORST_FIRST.index(check.status)))
