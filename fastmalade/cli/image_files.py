"""The files that ``fastmalade purify`` reads and writes: .npy, .npz, IDX, and folders of PNG images.

Every kind offers the same three things: ``count`` images, ``read(start, stop)`` for a run of them as they
are stored, and ``writer(out)`` for a file of the same kind, dtype and layout. A writer fills a file or
folder beside ``out`` and renames it at the end; when the block is left by an exception, nothing stays
behind, except that a folder keeps the images before a bad one. Nothing is written through a memory map: a full disk
under one is a bus error that ends the process.
"""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from fastmalade.cli.errors import BadImageError, CliError, require_packages
from fastmalade.data import read_idx, write_idx
from fastmalade.files import replacing, replacing_folder, write_bytes

Write = Callable[[Sequence[int], np.ndarray], None]
_PNG_MODES = {1: "L", 3: "RGB"}


class ImageFile(Protocol):
    """Images in a file or a folder."""

    count: int

    def read(self, start: int, stop: int) -> tuple[Sequence[int], np.ndarray]:
        """Positions and images start..stop-1 in native byte order; the whole array when it is a single image (H, W).

        A folder that skips bad images leaves them out of both.
        """

    def writer(self, out: Path) -> AbstractContextManager[Write]:
        """Context that gives ``write(positions, images)``; left normally, it puts the result at ``out``."""


def open_images(path: Path, *, key: str | None = None, channels: int = 1, skip_bad: bool = False) -> ImageFile:
    """Open ``path`` by what it is: a folder of PNGs, a name ending in .npy or .npz, any other file as IDX.

    Args:
        path: file or folder.
        key: name of the array in an .npz file that holds more than one.
        channels: channels that the model expects, which decides between grey and RGB PNGs.
        skip_bad: leave images of a folder that cannot be read out, where one is an error otherwise.

    Raises:
        CliError: nothing there, not readable as that kind, or a ``key`` or ``skip_bad`` that does not fit.
    """
    if not path.exists():
        raise CliError(f"{path}: no such file or folder")
    if key is not None and path.suffix != ".npz":
        raise CliError(f"--key is for .npz files, got {path}")
    if path.is_dir():
        return PngFolder(path, channels, skip_bad=skip_bad)
    if skip_bad:
        raise CliError(f"--skip-bad is for folders of PNG images, got {path}")
    try:
        if path.suffix == ".npy":
            return NpyFile(path)
        if path.suffix == ".npz":
            return NpzFile(path, key)
        return IdxFile(path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        text = str(error)
        raise CliError(text if text.startswith(str(path)) else f"{path}: cannot be read ({text})") from error


def check_output(source: Path, out: Path, *, force: bool) -> None:
    """Refuse an output that exists (without ``force``), cannot be created, or is named like another kind.

    Raises:
        CliError: any of these.
    """
    if not out.parent.is_dir():
        raise CliError(f"{out.parent}: no such folder to write {out.name} into")
    named = (".npy", ".npz")
    if not source.is_dir() and (source.suffix in named or out.suffix in named) and source.suffix != out.suffix:
        raise CliError(f"{out}: expected a name ending in {source.suffix or 'no suffix'} like the input {source}")
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise CliError(f"{out}: exists already; give --force to replace it")
    if out.is_dir() != source.is_dir():
        kinds = ("a folder", "a file") if source.is_dir() else ("a file", "a folder")
        raise CliError(f"{out}: expected {kinds[0]} to replace, got {kinds[1]}")
    if out.is_dir():
        foreign = [entry.name for entry in out.iterdir() if not _is_png(entry)]
        if foreign:
            raise CliError(f"{out}: --force replaces a folder of PNG images only, this one also holds {foreign[0]!r}")


class _ArrayFile:
    """Images in one array: (H, W), or anything whose first axis counts images."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.single = values.ndim < 3
        self.count = 1 if self.single else len(values)

    def read(self, start: int, stop: int) -> tuple[Sequence[int], np.ndarray]:
        part = self.values if self.single else self.values[start:stop]
        return range(start, stop), np.array(part, dtype=part.dtype.newbyteorder("="), order="C")

    def _write_into(self, target: np.ndarray) -> Write:
        def write(positions: Sequence[int], images: np.ndarray) -> None:
            target[... if self.single else positions] = images

        return write


class NpyFile(_ArrayFile):
    """An .npy file, mapped and not loaded: memory use does not grow with the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(np.lib.format.open_memmap(path, mode="r"))

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        values, count = self.values, self.count
        fortran = values.flags.f_contiguous and not values.flags.c_contiguous
        described = {
            "descr": np.lib.format.dtype_to_descr(values.dtype),
            "fortran_order": fortran,
            "shape": values.shape,
        }
        with replacing(out) as partial, partial.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, described)
            first, size = file.tell(), values.dtype.itemsize

            def write(positions: Sequence[int], images: np.ndarray) -> None:
                stored = images.astype(values.dtype)
                if self.single or not fortran:
                    file.write(stored.tobytes("F" if fortran else "C"))  # chunk after chunk, in the order of the file
                    return
                # The first axis runs fastest: every pixel has a run of its own, with the chunk somewhere in it.
                for pixel, column in enumerate(stored.reshape(len(stored), -1, order="F").T):
                    file.seek(first + (pixel * count + positions[0]) * size)
                    file.write(column.tobytes())

            yield write


class NpzFile(_ArrayFile):
    """One array of an .npz archive, held in memory; the other arrays are copied unchanged."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            if key is None and len(names) != 1:
                raise CliError(f"{path}: expected one array, or --key, got {len(names)} arrays: {', '.join(names)}")
            self.key = names[0] if key is None else key
            if self.key not in names:
                raise CliError(f"{path}: expected --key to be one of {', '.join(names)}, got {self.key}")
            super().__init__(arrays[self.key])
        with zipfile.ZipFile(path) as archive:  # all of it, before the work: the other arrays are copied after it
            damaged = archive.testzip()
        if damaged is not None:
            raise CliError(f"{path}: cannot be read ({damaged.removesuffix('.npy')} is damaged)")

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        result = np.empty_like(self.values)
        yield self._write_into(result)
        # Through memory: an archive whose file cannot take its content fails a second time, otherwise, when it closes.
        content = io.BytesIO()
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(content, "x") as new:
            for member in old.infolist():
                header = zipfile.ZipInfo(member.filename, member.date_time)
                header.compress_type = member.compress_type
                with new.open(header, "w", force_zip64=True) as target:
                    if member.filename == f"{self.key}.npy":
                        np.lib.format.write_array(target, result, allow_pickle=False)
                    else:
                        with old.open(member) as source:
                            shutil.copyfileobj(source, target)
        write_bytes(out, content.getbuffer())


class IdxFile(_ArrayFile):
    """An IDX file, plain or gzip, held in memory; the output is compressed if its name ends in .gz."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_idx(path))

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        result = np.empty_like(self.values)
        yield self._write_into(result)
        write_idx(out, result)


class PngFolder:
    """The PNG images of a folder, sorted by name: 8-bit grey for a model of one channel, 8-bit RGB for three.

    All must have the shape of the first that can be read. Files of other kinds and sub-folders are neither read nor
    copied; ``ignored`` counts them. ``skipped`` has a line for each bad image that was left out, with ``skip_bad``.
    """

    def __init__(self, path: Path, channels: int, *, skip_bad: bool = False) -> None:
        require_packages("images", "PIL")
        if channels not in _PNG_MODES:
            raise CliError(f"{path}: PNG images need a model of 1 or 3 channels, this one has {channels}")
        self.path = path
        entries = sorted(path.iterdir())
        self.files = [entry for entry in entries if _is_png(entry)]
        self.ignored = len(entries) - len(self.files)
        if not self.files:
            raise CliError(f"{path}: expected PNG images in this folder, found none")
        self.mode = _PNG_MODES[channels]
        self.count = len(self.files)
        self.skip_bad = skip_bad
        self.skipped: list[str] = []
        self._first: tuple[str, tuple[int, ...]] | None = None

    def read(self, start: int, stop: int) -> tuple[Sequence[int], np.ndarray]:
        positions, images = [], []
        for position, file in enumerate(self.files[start:stop], start=start):
            try:
                image = self._decode(file)
                self._check_shape(file, image.shape)
            except BadImageError as error:
                if not self.skip_bad:
                    raise
                self.skipped.append(str(error))
                continue
            positions.append(position)
            images.append(image)
        return positions, np.stack(images) if images else np.empty((0,), np.uint8)

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        from PIL import Image

        written = 0
        cut_short: CliError | None = None
        with replacing_folder(out) as partial:

            def write(positions: Sequence[int], images: np.ndarray) -> None:
                nonlocal written
                for position, image in zip(positions, images, strict=True):
                    content = io.BytesIO()
                    Image.fromarray(image).save(content, format="PNG")
                    (partial / self.files[position].name).write_bytes(content.getbuffer())
                    written += 1

            try:
                yield write
            except BadImageError as error:
                hint = "--skip-bad leaves bad files out"
                if not written:
                    raise CliError(f"{error}; nothing was written, {hint}") from error
                if out.exists():
                    raise CliError(f"{error}; {out} is left as it was, {hint}") from error
                cut_short = CliError(f"{error}; {out} has the first {written} of {self.count} images, {hint}")
            if not written and cut_short is None:
                raise CliError(f"{self.path}: expected a PNG image that can be read; {self.skipped[0]}")
        if cut_short is not None:
            raise cut_short

    def _check_shape(self, file: Path, shape: tuple[int, ...]) -> None:
        if self._first is None:
            self._first = file.name, shape
        name, expected = self._first
        if shape != expected:
            pixels, got = f"{expected[0]}x{expected[1]}", f"{shape[0]}x{shape[1]}"
            raise BadImageError(f"{file}: expected {pixels} pixels like {name}, got {got}")

    def _decode(self, file: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(file, formats=["PNG"]) as image:
                if image.mode != self.mode:
                    raise BadImageError(f"{file}: expected an 8-bit PNG of mode {self.mode}, got mode {image.mode}")
                return np.asarray(image)
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            struct.error,
            zlib.error,
            Image.DecompressionBombError,
        ) as error:
            raise BadImageError(f"{file}: cannot be read as PNG ({error})") from error


def _is_png(entry: Path) -> bool:
    return entry.suffix.lower() == ".png" and entry.is_file()
