"""``fastmalade demo``: attack real digits, purify them, attack the purifier too, time it, and draw it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastmalade.cli.errors import CliError, exit_codes, require_packages
from fastmalade.cli.stages import Stages
from fastmalade.files import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastmalade.bench.report import Grid
    from fastmalade.defenses.purifier import Purifier
    from fastmalade.evaluation import TransferRow, WhiteboxRow

EPSILONS = (0.1, 0.2, 0.3)
LARGEST = EPSILONS[-1]
FIGURE_DIGITS = 6
WHITEBOX_ATTACKS = ("pgd:blind", "pgd:bpda", "pgd:unrolled")
HONEST = (
    "The last row is the robustness of the defence, because an attacker who knows it differentiates through it. The "
    "tables above hold against attackers who do not know it."
)


@dataclass(frozen=True)
class Scale:
    """How much of everything one run does.

    Attributes:
        images: digits attacked without knowledge of the defence.
        whitebox_images: digits attacked through the defence.
        pgd_steps: steps of every PGD attack.
        pgd_step_size: length of each; together they must reach across the largest ball.
        eot: noise draws averaged by the attacks through the defence.
        batches: batch sizes of the timing.
        seconds_per_batch: timing budget of each batch size, for each of the two that take turns.
        takes: how long the whole takes on two idle cores, in words.
    """

    images: int = 500
    whitebox_images: int = 50
    pgd_steps: int = 40
    pgd_step_size: float = 0.01
    eot: int = 4
    batches: tuple[int, ...] = (1, 16, 256)
    seconds_per_batch: float = 2.0
    takes: str = "about three minutes"


QUICK = Scale(
    images=60,
    whitebox_images=10,
    pgd_steps=10,
    pgd_step_size=0.04,
    eot=2,
    batches=(1, 16),
    seconds_per_batch=0.25,
    takes="about twenty seconds",
)


def demo(
    images: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Digits in the attack tables [default: 500; quick: 60]."),
    ] = None,
    whitebox_images: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Digits in the whitebox block [default: 50; quick: 10]."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for figure.png, results.json and demo.log.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Everything but the timing follows from it.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run with weaker attacks, to try things.")] = False,
) -> None:
    """Attack digits of the MNIST test set, purify them, and show what that gives.

    Prints accuracy bare, after MALA, after MALADE and after a purifier trained under attack ("robust"), the accuracy
    left when the attacker knows either of the last two, and microseconds per image against PyTorch eager. Writes a
    figure, all numbers as JSON, and a log of what took how long.
    """
    with exit_codes():
        require_packages("demo", "foolbox", "matplotlib")
        scale = QUICK if quick else Scale()
        scale = replace(
            scale,
            images=images or scale.images,
            whitebox_images=whitebox_images or min(scale.whitebox_images, images or scale.images),
        )
        if scale.whitebox_images > scale.images:
            raise CliError(f"--whitebox-images: expected at most --images {scale.images}, got {scale.whitebox_images}")
        _run(scale, output, seed)


def _run(scale: Scale, output: Path, seed: int) -> None:
    import torch

    from fastmalade import backends
    from fastmalade.cli import demo_report as report

    started = time.perf_counter()
    try:
        backends.resolve(None, device=torch.device("cpu"), dtype=torch.float32)
    except ValueError as error:
        # A misspelt FASTMALADE_BACKEND; better said now than after the attacks.
        raise CliError(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    run = _Demonstration(scale, output, seed)
    run.stages.say(f"this takes {scale.takes} on two idle cores; Ctrl-C stops it")
    fgsm = run.transfer("fgsm")
    pgd = run.transfer("pgd")
    figure = run.figure()
    whitebox, robust = run.whitebox("MALADE"), run.whitebox("robust")
    grid = run.speed()
    write_json(
        output / "results.json",
        {
            "seed": seed,
            "settings": vars(scale),
            "machine": report.machine(),
            "transfer": report.transfer_json([*fgsm, *pgd]),
            "whitebox": report.whitebox_json(whitebox, LARGEST),
            "whitebox_robust": report.whitebox_json(robust, LARGEST),
            "timing": report.timing_json(grid),
            "figure": figure,
            "stages": run.stages.seconds,
            "seconds": time.perf_counter() - started,
        },
        indent=2,
    )
    run.stages.say(f"all figures are in {output / 'results.json'}, this log in {output / 'demo.log'}")
    run.console.print(f"Picture: {output / 'figure.png'}", highlight=False, soft_wrap=True)
    run.say(report.summary(pgd[-1], whitebox, robust, grid))


class _Demonstration:
    """The blocks of one run; each prints its table and gives its rows."""

    def __init__(self, scale: Scale, output: Path, seed: int) -> None:
        from fastmalade import load_classifier
        from fastmalade.cli.tables import wide_console
        from fastmalade.data import embedded_tensors
        from fastmalade.defenses.purifier import Purifier
        from fastmalade.models import in_channels_last

        self.scale, self.output, self.seed = scale, output, seed
        self.stages = Stages(output / "demo.log")
        self.console = wide_console(120)
        # The gradients of the classifier, which the attacks consist of, take two thirds of the time in this layout.
        self.classifier: nn.Module = in_channels_last(load_classifier("mnist-c"))
        # The order of the columns: what the papers compare with comes first.
        self.purifiers: dict[str, Purifier] = {
            "MALA": Purifier.from_pretrained("mala-mnist"),
            "MALADE": Purifier.from_pretrained("malade-mnist"),
            "robust": Purifier.from_pretrained("malade-robust-mnist"),
        }
        digits, labels = embedded_tensors()
        self.digits, self.labels = digits[: scale.images], labels[: scale.images]
        self.attacked: dict[tuple[str, float], Tensor] = {}

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, highlight=False)

    def transfer(self, attack: Literal["fgsm", "pgd"]) -> list[TransferRow]:
        """Attack the classifier alone, then classify the images bare and purified.

        For "fgsm", which is printed first, the clean images have a row too.
        """
        from fastmalade.cli.tables import transfer_table as printed
        from fastmalade.evaluation import seeded, transfer_table

        scale = self.scale
        with self.stages.stage(f"attacking the bare classifier, {attack}") as advance:

            def counted(row: TransferRow, images: Tensor) -> None:
                self.attacked[row.attack, row.epsilon] = images

            def progress(what: str, done: int, total: int) -> None:
                finished = sum(name == attack for name, _ in self.attacked)
                advance(finished * total + done, len(EPSILONS) * total, f"eps {what.split()[-1]}")

            rows = transfer_table(
                self.classifier,
                {name: seeded(purifier, self.seed) for name, purifier in self.purifiers.items()},
                self.digits,
                self.labels,
                [(attack, epsilon) for epsilon in EPSILONS],
                steps=scale.pgd_steps,
                step_size=scale.pgd_step_size,
                seed=self.seed,
                progress=progress,
                counted=counted,
            )
        if attack == "fgsm":
            self.say(
                f"Accuracy of classifier C on {len(self.digits)} MNIST test digits, with 95% intervals: bare, and "
                "behind each purifier. The attack, one step in Linf, is made against the bare classifier, as in the "
                f"papers; seed {self.seed}."
            )
        else:
            rows = rows[1:]
            self.say(f"The same under PGD, {scale.pgd_steps} steps of {scale.pgd_step_size:g}.")
        self.console.print(printed(rows), "")
        return rows

    def figure(self) -> dict[str, Any]:
        """Draw a few digits after some steps of both purifiers."""
        from fastmalade.evaluation.figure import RULE, choose_digits, draw_figure, walk

        attacked = self.attacked["pgd", LARGEST]
        chosen = choose_digits(self.classifier, self.digits, attacked, self.labels, FIGURE_DIGITS)
        if not chosen:
            raise CliError(
                f"no digit that classifier C gets right is wrong after pgd at eps {LARGEST:g}: nothing to draw"
            )
        with self.stages.stage("drawing the figure"):
            shown = {name: self.purifiers[name] for name in ("MALADE", "MALA")}
            walks = walk(self.classifier, shown, self.digits, attacked, self.labels, chosen, seed=self.seed)
            caption = f"pgd at eps {LARGEST:g} against the bare classifier, seed {self.seed}. Digits: {RULE}."
            draw_figure(walks, self.output / "figure.png", caption=caption)
        return {"file": "figure.png", "attack": "pgd", "epsilon": LARGEST, "digits": chosen, "rule": RULE}

    def whitebox(self, name: str) -> list[WhiteboxRow]:
        """Attack the classifier behind one of the purifiers, as ``fastmalade attack`` does."""
        from fastmalade.cli.tables import whitebox_table
        from fastmalade.defenses.defended import DefendedClassifier
        from fastmalade.evaluation import WhiteboxSettings, whitebox_rows

        scale = self.scale
        settings = WhiteboxSettings(
            epsilon=LARGEST, steps=scale.pgd_steps, step_size=scale.pgd_step_size, eot=scale.eot, seed=self.seed
        )
        attacks = settings.attacks(WHITEBOX_ATTACKS)
        count = scale.whitebox_images
        with self.stages.stage(f"attacking through the defence, {name}") as advance:

            def progress(attack: str, done: int, total: int) -> None:
                advance(WHITEBOX_ATTACKS.index(attack) * total + done, len(attacks) * total, attack)

            defended = DefendedClassifier(self.purifiers[name], self.classifier).eval()
            rows = list(whitebox_rows(defended, self.digits[:count], self.labels[:count], attacks, progress=progress))
        if name == "MALADE":
            self.say(
                f"Accuracy of classifier C behind MALADE on the first {count} of these digits, as `fastmalade attack` "
                f"measures it: pgd at eps {LARGEST:g}, {scale.pgd_steps} steps of {scale.pgd_step_size:g}, gradients "
                f"averaged over {scale.eot} noise draws, judged by {settings.judge_chains} queries with noise that no "
                "attack has seen. blind: the attack ignores the defence; bpda: it treats the defence as the identity; "
                "unrolled: it uses the exact gradient."
            )
        else:
            self.say(
                "The same for the purifier that was trained under attack, through all steps of its chain "
                "(malade-robust-mnist); the classifier is the same."
            )
        self.console.print(whitebox_table(rows))
        self.say(f"{HONEST if name == 'MALADE' else ''}\n")
        return rows

    def speed(self) -> Grid:
        """Time MALADE against PyTorch eager, as ``fastmalade bench`` does."""
        from fastmalade import backends
        from fastmalade.bench import Settings, run
        from fastmalade.bench.contenders import Native
        from fastmalade.bench.contenders.eager import Eager
        from fastmalade.bench.report import grids, unsteady
        from fastmalade.cli import demo_report as report

        settings = Settings(
            peers=("eager",),
            batches=self.scale.batches,
            seconds=self.scale.seconds_per_batch,
        )
        with self.stages.stage("timing") as advance:
            result = run(
                settings,
                contenders=[Native(), Eager()],
                report=lambda what, part: advance(part, 1.0, what),
            )
        (grid,) = grids(result)
        self.say(
            f"Microseconds per image on one core, as `fastmalade bench` measures them: {grid.steps} steps on "
            f"{grid.shape}, noise included, medians of calls that take turns; instruction set "
            f"{report.machine()['isa'] or 'none'}."
        )
        self.console.print(report.timing_table(grid))
        for line in unsteady(result):
            self.say(f"The machine was busy: {line}; repeat this on an idle machine.")
        reason = backends.available()["cpu"]
        if reason is not None:
            self.say(f"The native chain cannot be used here: {reason}")
        self.say("")
        return grid
