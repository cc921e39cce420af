"""``fastmalade demo``: attack real digits, purify them, time it, draw it, and attack the defence itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmalade.cli.errors import CliError, exit_codes, require_packages
from fastmalade.files import replacing
from fastmalade.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from fastmalade.defenses.purifier import Purifier
    from fastmalade.demo import AttackTable, TimingRow, WhiteboxRow

EPSILONS = (0.1, 0.2, 0.3)
WHITEBOX_EPSILON = 0.3
FIGURE_DIGITS = 6


@dataclass(frozen=True)
class Scale:
    """How much of everything one run does.

    Attributes:
        images: digits in the attack table.
        whitebox_images: digits in the whitebox block.
        pgd_steps: steps of every PGD attack.
        pgd_step_size: length of each; together they must reach across the largest ball.
        eot: noise draws averaged by the whitebox attacks.
        batches: batch sizes of the timing.
        seconds_per_batch: timing budget of each.
    """

    images: int = 500
    whitebox_images: int = 50
    pgd_steps: int = 40
    pgd_step_size: float = 0.01
    eot: int = 4
    batches: tuple[int, ...] = (1, 16, 256, 1024)
    seconds_per_batch: float = 5.0


QUICK = Scale(
    images=60,
    whitebox_images=10,
    pgd_steps=10,
    pgd_step_size=0.04,
    eot=2,
    batches=(1, 16),
    seconds_per_batch=0.5,
)


def demo(
    images: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Digits in the attack table [default: 500; quick: 60]."),
    ] = None,
    whitebox_images: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Digits in the whitebox block [default: 50; quick: 10]."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for figure.png and results.json.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Everything but the timing follows from it.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run with weaker attacks, to try things.")] = False,
) -> None:
    """Attack digits of the MNIST test set, purify them, and show what that gives.

    Prints accuracy bare, after MALA and after MALADE; microseconds per image against PyTorch eager; and a
    whitebox block that attacks through the defence. Writes a figure and all numbers as JSON.
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
        run(scale, output, seed)


def run(scale: Scale, output: Path, seed: int) -> None:
    """Run the demonstration and write its files into ``output``, which is created when it is not there."""
    import torch
    from rich.console import Console

    from fastmalade import backends, load_classifier
    from fastmalade.data import embedded_digits
    from fastmalade.defenses.purifier import Purifier

    started = time.perf_counter()
    try:
        backends.resolve(None, device=torch.device("cpu"), dtype=torch.float32)
    except ValueError as error:
        # A misspelt FASTMALADE_BACKEND; better said now than after the attacks.
        raise CliError(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    # Without a terminal rich takes 80 columns and folds the table; piped output may as well be wide.
    console = Console() if Console().is_terminal else Console(width=120)
    # Its gradients, which the attacks are made of, take two thirds of the time with channels last.
    classifier = load_classifier("mnist-c").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    purifiers = {
        "MALADE": Purifier.from_pretrained("malade-mnist"),
        "MALA": Purifier.from_pretrained("mala-mnist"),
    }
    raw_images, raw_labels = embedded_digits()
    digits = torch.from_numpy(raw_images[: scale.images]).unsqueeze(1).float() / 255
    labels = torch.from_numpy(raw_labels[: scale.images])

    attacks = _attack_block(console, classifier, purifiers, digits, labels, scale, seed)
    timing = _timing_block(console, purifiers["MALADE"], digits, scale)
    figure = _figure_block(console, classifier, purifiers, digits, labels, attacks, output, seed)
    whitebox = _whitebox_block(console, classifier, purifiers["MALADE"], digits, labels, attacks, scale, seed)

    seconds = time.perf_counter() - started
    _write_results(output / "results.json", attacks, whitebox, timing, scale, seed, seconds, figure)
    console.print(
        f"wrote {output / 'results.json'} and {output / 'figure.png'}; {seconds:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )


def _attack_block(
    console: Console,
    classifier: Any,
    purifiers: dict[str, Purifier],
    digits: Any,
    labels: Any,
    scale: Scale,
    seed: int,
) -> AttackTable:
    from fastmalade.demo import attack_table
    from fastmalade.demo.report import attack_report

    attacks = [(name, epsilon) for name in ("fgsm", "pgd") for epsilon in EPSILONS]
    with _progress("attacking the bare classifier", len(attacks) * len(digits)) as advance:
        table = attack_table(
            classifier,
            # The order of the columns: what the papers compare against first.
            {name: purifiers[name] for name in ("MALA", "MALADE")},
            digits,
            labels,
            attacks,  # type: ignore[arg-type]
            steps=scale.pgd_steps,
            step_size=scale.pgd_step_size,
            seed=seed,
            progress=lambda _what, count: advance(count),
        )
    console.print(
        f"Accuracy of classifier C on {len(digits)} MNIST test digits, with 95% intervals. The attacks "
        f"(Linf; pgd: {scale.pgd_steps} steps of {scale.pgd_step_size:g}) are made against the bare "
        f"classifier, as in the papers; seed {seed}.",
        highlight=False,
    )
    console.print(attack_report(table.rows), "")
    return table


def _timing_block(console: Console, purifier: Purifier, digits: Any, scale: Scale) -> list[TimingRow]:
    from fastmalade.demo import timing_table
    from fastmalade.demo.report import timing_doubt, timing_report

    with _progress("timing", len(scale.batches)) as advance:
        rows = timing_table(
            purifier, digits, scale.batches, seconds_per_batch=scale.seconds_per_batch, progress=advance
        )
    machine = _machine()
    console.print(
        f"Microseconds per image: {purifier.chain.n_steps} steps on 1x28x28, noise included, medians of "
        f"alternating calls; {machine['threads']} threads, instruction set {machine['isa'] or 'none'}.",
        highlight=False,
    )
    console.print(timing_report(rows))
    doubt = timing_doubt(rows)
    if doubt is not None:
        console.print(doubt, highlight=False)
    if machine["reason"] is not None:
        console.print(f"The native chain cannot be used here: {machine['reason']}", highlight=False)
    console.print()
    return rows


def _figure_block(
    console: Console,
    classifier: Any,
    purifiers: dict[str, Purifier],
    digits: Any,
    labels: Any,
    attacks: AttackTable,
    output: Path,
    seed: int,
) -> dict[str, Any]:
    from fastmalade.demo import choose_digits, draw_figure, walk
    from fastmalade.demo.figure import RULE

    epsilon = EPSILONS[-1]
    attacked = attacks.images["pgd", epsilon]
    chosen = choose_digits(classifier, digits, attacked, labels, FIGURE_DIGITS)
    if not chosen:
        raise CliError(f"no digit that classifier C gets right is wrong after pgd at eps {epsilon:g}: nothing to draw")
    walks = walk(classifier, purifiers, digits, attacked, labels, chosen, seed=seed)
    caption = f"pgd at eps {epsilon:g} against the bare classifier, seed {seed}. Digits: {RULE}."
    draw_figure(walks, output / "figure.png", caption=caption)
    console.print(f"Figure: digits {', '.join(map(str, chosen))} of the sample: {RULE}.\n", highlight=False)
    return {"file": "figure.png", "attack": "pgd", "epsilon": epsilon, "digits": chosen, "rule": RULE}


def _whitebox_block(
    console: Console,
    classifier: Any,
    purifier: Purifier,
    digits: Any,
    labels: Any,
    attacks: AttackTable,
    scale: Scale,
    seed: int,
) -> list[WhiteboxRow]:
    from fastmalade.demo import whitebox_table
    from fastmalade.demo.report import HONEST, whitebox_report
    from fastmalade.demo.whitebox import WhiteboxSetting

    settings = [WhiteboxSetting(mode, scale.pgd_steps, scale.pgd_step_size, scale.eot) for mode in ("unrolled", "bpda")]
    count = scale.whitebox_images
    with _progress("attacking through the defence", len(settings)) as advance:
        rows = whitebox_table(
            purifier,
            classifier,
            digits[:count],
            labels[:count],
            epsilon=WHITEBOX_EPSILON,
            settings=settings,
            transferred=("pgd", attacks.images["pgd", WHITEBOX_EPSILON][:count]),
            seed=seed,
            progress=advance,
        )
    console.print(
        f"Accuracy of classifier C behind MALADE at eps {WHITEBOX_EPSILON:g} on the first {count} of these "
        "digits, with 95% intervals. Each gradient is that of the probability averaged over several chains "
        "with fresh noise (EOT); scored on one chain, with noise that no attack has seen.",
        highlight=False,
    )
    console.print(whitebox_report(rows))
    console.print(HONEST, highlight=False)
    return rows


def _machine() -> dict[str, Any]:
    import torch

    from fastmalade import backends

    reason = backends.available()["cpu"]
    isa = backends.cpu.calls.isa_in_use() if reason is None else None
    return {"threads": torch.get_num_threads(), "isa": isa, "reason": reason, "torch": torch.__version__}


def _write_results(
    path: Path,
    attacks: AttackTable,
    whitebox: list[WhiteboxRow],
    timing: list[TimingRow],
    scale: Scale,
    seed: int,
    seconds: float,
    figure: dict[str, Any],
) -> None:
    from fastmalade.demo.report import as_json

    results = {
        "seed": seed,
        "settings": vars(scale),
        "machine": _machine(),
        **as_json(attacks.rows, whitebox, timing, whitebox_epsilon=WHITEBOX_EPSILON),
        "figure": figure,
        "seconds": seconds,
    }
    with replacing(path) as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress_bar(transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, advance=count)
