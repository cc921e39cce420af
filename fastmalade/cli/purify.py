"""``fastmalade purify IN OUT``: purify a file of images, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmalade.cli.errors import EXIT_INCOMPLETE, CliError, exit_codes
from fastmalade.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from fastmalade.defenses.base import Defense

# The options for settings of one call, by the name of the setting.
_OVERRIDES = {"n_steps": "--steps", "backend": "--backend"}


def purify(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="An .npy, .npz or IDX file (plain or .gz), or a folder of PNGs."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write; the same kind as IN.")],
    model: Annotated[
        str, typer.Option(help="A shipped purifier or other defence, or the path of a .safetensors file.")
    ] = "malade-mnist",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="64-bit seed of the noise; fresh when not given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Langevin steps N, for a Purifier; the model's own when not given.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="torch or cpu, for a Purifier; chosen automatically when not given.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per chunk; does not change the result. 1024, or 64 for defences other than a Purifier."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own choice when not given.")] = None,
    key: Annotated[str | None, typer.Option(help="The array to purify in an .npz file of several.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="In a folder, leave out images that are damaged or not like the first.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT when it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Purify images and write them in the format, dtype and layout they came in.

    uint8 means 0..255; floating values lie in the model's range (0..1 for the shipped ones). Sample ids are the
    positions in the file (in a folder, in the order of the file names, bad ones counted), so the same --seed gives the
    same result for every batch size (bit for bit on the cpu backend). OUT appears only when it is complete, except that
    a folder with a bad image becomes a new OUT with those done before it. An .npy file is memory-mapped; .npz and IDX
    files are loaded whole.

    Exit codes: 0 done; 2 an error, such as bad input or a full disk; 3 done, but --skip-bad left images out, which are
    listed on standard error; 128 + the signal when interrupted.
    """
    with exit_codes(on_interrupt=f"interrupted: {out} was not written"), _threads(threads):
        from fastmalade.backends import BACKENDS
        from fastmalade.cli.image_files import PngFolder, check_output, open_images
        from fastmalade.defenses.base import Defense
        from fastmalade.seeds import fresh_seed

        check_output(source, out, force=force)
        if backend is not None and backend not in BACKENDS:
            raise CliError(f"--backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        defense = Defense.from_pretrained(model)
        overrides = {name: value for name, value in (("n_steps", steps), ("backend", backend)) if value is not None}
        refused = ", ".join(_OVERRIDES[name] for name in overrides if name not in defense.overridable)
        if refused:
            raise CliError(f"{refused}: expected a Purifier to set this for, got {model}, a {type(defense).__name__}")
        images = open_images(source, key=key, channels=defense.channels or 1, skip_bad=skip_bad)
        used_seed = fresh_seed() if seed is None else seed
        chunk_size = defense.images_per_call if batch_size is None else batch_size

        started = time.perf_counter()
        with images.writer(out) as write, _progress(images.count, quiet=quiet) as advance:
            # An empty file goes through once, so that its dtype and shape are checked too.
            for start in range(0, max(images.count, 1), chunk_size):
                stop = min(start + chunk_size, images.count)
                positions, chunk = images.read(start, stop)
                if stop > start and not positions:
                    advance(stop - start)
                    continue
                try:
                    result = _purify_chunk(defense, chunk, positions, used_seed, overrides)
                except (ValueError, TypeError, FloatingPointError) as error:
                    where = f"images {start}..{stop - 1}" if images.count > 1 else "the image"
                    raise CliError(f"{source}, {where if images.count else 'no images'}: {error}") from error
                write(positions, result)
                advance(stop - start)
        seconds = time.perf_counter() - started

        skipped = images.skipped if isinstance(images, PngFolder) else []
        if not quiet:
            done = images.count - len(skipped)
            per_image = seconds / max(done, 1) * 1e6
            typer.echo(
                f"{out}: {done} images purified with {model}, seed {used_seed}, in {seconds:.2f} s "
                f"({per_image:.0f} us per image with reading and writing)"
            )
            if isinstance(images, PngFolder) and images.ignored:
                typer.echo(f"{images.ignored} entries of {source} that are not PNG images were not copied", err=True)
        if skipped:
            typer.echo(f"{len(skipped)} of {images.count} images were skipped:", err=True)
            for line in skipped:
                typer.echo(line, err=True)
            raise typer.Exit(EXIT_INCOMPLETE)


def _purify_chunk(
    defense: Defense, chunk: np.ndarray, positions: Sequence[int], seed: int, overrides: dict[str, Any]
) -> np.ndarray:
    import torch

    return defense.purify(chunk, seed=seed, sample_ids=torch.tensor(positions, dtype=torch.int64), **overrides)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    with progress_bar(enabled=not quiet) as progress:
        task = progress.add_task("purifying", total=total)
        yield lambda count: progress.update(task, advance=count)
