"""Suites of attacks and checks as data: TOML files in this folder, or of one's own."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from fastmalade.attacks import FGSM, MIM, PGD, Attack, IterativeAttack, RandomFGSM, ReconstructionPGD
from fastmalade.attacks.gradient_attacks import Schedule
from fastmalade.checks import check_choice, check_count, check_number
from fastmalade.defenses.defended import GradientMode
from fastmalade.geometry import Norm, check_norm

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # type: ignore[import-not-found]

_OURS: dict[str, type[Attack]] = {"pgd": PGD, "fgsm": FGSM, "rfgsm": RandomFGSM, "mim": MIM, "rpgd": ReconstructionPGD}
LIBRARY_KINDS = ("cw", "ead", "boundary", "salt-and-pepper")


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a suite, judged like every other row.

    Attributes:
        name: title of its row.
        knows: what the attacker knows, in words.
        kind: "pgd", "fgsm", "rfgsm", "mim" or "rpgd", which are ours (:mod:`fastmalade.attacks`), or one of
            :mod:`fastmalade.suites.library_attacks`, which have no ball: "cw", "ead", "boundary", "salt-and-pepper".
        gradient: "unrolled" (exact), "bpda" or "blind"; a model that is no DefendedClassifier has "unrolled" only.
        radius: share of the suite's epsilon.
        epsilon, norm: a ball of its own instead of the suite's.
        images: the first so many images alone; None for those of the suite.
        options: settings that only this kind has, see there.
        unbounded: the ball is the whole range of the images instead.
        known_noise: the defence draws the same noise at every query, and the attacker's gradient has that noise.
        steps, eot, restarts: see :class:`fastmalade.attacks.PGD`; one draw where nothing is random.
    """

    name: str
    knows: str
    gradient: GradientMode = "unrolled"
    kind: str = "pgd"
    radius: float = 1.0
    epsilon: float | None = None
    norm: Norm | None = None
    images: int | None = None
    unbounded: bool = False
    known_noise: bool = False
    steps: int = 40
    eot: int = 1
    restarts: int = 1
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, (*_OURS, *LIBRARY_KINDS))
        if self.norm is not None:
            check_norm(self.norm)
        if self.images is not None:
            check_count("images", self.images, 1)
        check_choice("gradient", self.gradient, get_args(GradientMode))
        check_number("radius", self.radius)
        for name in ("steps", "eot", "restarts"):
            check_count(name, getattr(self, name), 1)

    @property
    def is_main(self) -> bool:
        """Whether it attacks the deployed defence at the suite's epsilon, on all images."""
        of_its_own = any(value is not None for value in (self.epsilon, self.norm, self.images))
        return self.kind == "pgd" and self.radius == 1.0 and not (of_its_own or self.unbounded or self.known_noise)

    @property
    def is_ours(self) -> bool:
        """Whether it is an attack of this package, with a ball, a gradient and a state that can be kept."""
        return self.kind in _OURS

    def gradients(self, random: bool) -> int:
        """Input gradients of an image that it takes at most."""
        if not self.is_ours:
            return self.steps * int(self.options.get("search_steps", 1)) if self.kind in ("cw", "ead") else 0
        iterative = issubclass(_OURS[self.kind], IterativeAttack)
        return (self.steps * self.restarts if iterative else 1) * (self.eot if random else 1)


@dataclass(frozen=True)
class SquareSpec:
    """The black-box attack Square (Andriushchenko et al. 2020): how many images, how many queries each."""

    images: int
    queries: int


@dataclass(frozen=True)
class BinarizationSpec:
    """The binarization test: images, inner points that train a readout, steps and draws of the attack on it."""

    images: int
    inner: int
    steps: int
    eot: int


@dataclass(frozen=True)
class Suite:
    """What :func:`fastmalade.evaluate` runs.

    Attributes:
        name: of the suite.
        purpose: what its figures are good for, in words.
        images: the first so many of the images given.
        epsilon, norm: the ball of the main attacks, in units of the images.
        judge_chains: queries with fresh noise that judge an image, for every row; one where nothing is random.
        step_share: first step of the attacks as a share of their radius.
        schedule: how steps fall, see :class:`fastmalade.attacks.PGD`.
        attacks: in the order in which they run.
        square, binarization: these tests, or None to leave one out.
    """

    name: str
    purpose: str
    images: int
    epsilon: float
    norm: Norm
    judge_chains: int
    step_share: float
    schedule: Schedule
    attacks: tuple[AttackSpec, ...]
    square: SquareSpec | None = None
    binarization: BinarizationSpec | None = None

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_count("images", self.images, 1)
        check_count("judge_chains", self.judge_chains, 1)
        check_choice("schedule", self.schedule, get_args(Schedule))
        if not check_number("epsilon", self.epsilon) > 0:
            raise ValueError("epsilon: expected a positive number, got 0")
        if not check_number("step_share", self.step_share) > 0:
            raise ValueError("step_share: expected a positive number, got 0")
        if not any(spec.is_main and spec.gradient == "unrolled" for spec in self.attacks):
            raise ValueError("attacks: expected PGD with the exact gradient at the full radius, got none")
        titles = [spec.name for spec in self.attacks]
        if len(set(titles)) != len(titles):
            raise ValueError(f"attacks: expected different names, got {titles}")

    def radius_of(self, spec: AttackSpec, value_range: tuple[float, float], pixels: int) -> float:
        """Radius of an attack; an unbounded one reaches every image of the range."""
        if not spec.unbounded:
            return self.epsilon * spec.radius if spec.epsilon is None else spec.epsilon
        width = value_range[1] - value_range[0]
        return width * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[spec.norm or self.norm]

    def attack(
        self, spec: AttackSpec, value_range: tuple[float, float], pixels: int, *, random: bool, seed: int
    ) -> Attack:
        """The attack of a specification that is ours, for images of so many ``pixels`` (C H W)."""
        radius = self.radius_of(spec, value_range, pixels)
        eot = spec.eot if random and spec.gradient != "blind" and not spec.known_noise else 1
        settings: dict[str, Any] = {
            "epsilon": radius,
            "norm": spec.norm or self.norm,
            "gradient": spec.gradient,
            "eot": eot,
            "early_stop": True,
            "spread": eot >= 2,
            "judge_chains": self.judge_chains if random and not spec.known_noise else 1,
            "seed": seed,
        }
        kind = _OURS[spec.kind]
        if issubclass(kind, IterativeAttack):
            settings |= {"steps": spec.steps, "step_size": self.step_share * radius, "schedule": self.schedule}
            # A random point of the whole range is no image any more: without a gradient it would count as a success.
            settings |= {"restarts": spec.restarts, "random_start": not spec.unbounded}
        settings |= spec.options
        return kind(**settings)


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__package__).iterdir() if ".toml" in entry.name)


def load_suite(suite: str | Path | Suite, **changes: Any) -> Suite:
    """A suite by name, from a TOML file, or as it is.

    Args:
        suite: a name of :func:`shipped_suites`, a path that ends in ``.toml``, or a :class:`Suite`.
        changes: fields to replace; None leaves a field as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name, or a file that is not a suite.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if not isinstance(suite, Suite):
        text, name = _text_of(suite)
        try:
            suite = _parsed(name, tomllib.loads(text))
        except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
            raise ValueError(
                f"suite {name}: expected a suite as in fastmalade/suites/quick.toml, got {error}"
            ) from error
    return dataclasses.replace(suite, **changes)


def _text_of(suite: str | Path) -> tuple[str, str]:
    if str(suite).endswith(".toml"):
        path = Path(suite)
        return path.read_text(encoding="utf-8"), path.stem
    if suite not in shipped_suites():
        raise ValueError(f"suite: expected one of {', '.join(shipped_suites())} or a .toml file, got {str(suite)!r}")
    return (files(__package__) / f"{suite}.toml").read_text(encoding="utf-8"), str(suite)


def _parsed(name: str, values: Mapping[str, Any]) -> Suite:
    fields = dict(values)
    square, binarization = fields.pop("square", None), fields.pop("binarization", None)
    attacks = tuple(AttackSpec(**spec) for spec in fields.pop("attacks"))
    return Suite(
        name,
        attacks=attacks,
        square=None if square is None else SquareSpec(**square),
        binarization=None if binarization is None else BinarizationSpec(**binarization),
        **fields,
    )
