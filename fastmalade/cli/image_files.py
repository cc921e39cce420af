"""The files that ``fastmalade purify`` reads and writes: .npy, .npz, IDX, and folders of PNG images.

Every kind offers the same three things: ``count`` images, ``read(start, stop)`` for a run of them as they
are stored, and ``writer(out)`` for a file of the same kind, dtype and layout. A writer fills a file or
folder beside ``out`` and renames it at the end; when the block is left by an exception, nothing stays
behind.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from fastmalade.cli.errors import CliError, require_packages
from fastmalade.data import read_idx, write_idx
from fastmalade.files import beside, replacing

Write = Callable[[int, int, np.ndarray], None]
_PNG_MODES = {1: "L", 3: "RGB"}


class ImageFile(Protocol):
    """Images in a file or a folder."""

    count: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images start..stop-1 in native byte order; the whole array when it is a single image (H, W)."""

    def writer(self, out: Path) -> AbstractContextManager[Write]:
        """Context that gives ``write(start, stop, images)``; left normally, it puts the result at ``out``."""


def open_images(path: Path, *, key: str | None = None, channels: int = 1) -> ImageFile:
    """Open ``path`` by what it is: a folder of PNGs, a name ending in .npy or .npz, any other file as IDX.

    Args:
        path: file or folder.
        key: name of the array in an .npz file that holds more than one.
        channels: channels that the model expects, which decides between grey and RGB PNGs.

    Raises:
        CliError: nothing there, not readable as that kind, or a ``key`` that does not fit.
    """
    if not path.exists():
        raise CliError(f"{path}: no such file or folder")
    if key is not None and path.suffix != ".npz":
        raise CliError(f"--key is for .npz files, got {path}")
    if path.is_dir():
        return PngFolder(path, channels)
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

    def read(self, start: int, stop: int) -> np.ndarray:
        part = self.values if self.single else self.values[start:stop]
        return np.array(part, dtype=part.dtype.newbyteorder("="), order="C")

    def _write_into(self, target: np.ndarray) -> Write:
        def write(start: int, stop: int, images: np.ndarray) -> None:
            target[... if self.single else slice(start, stop)] = images

        return write


class NpyFile(_ArrayFile):
    """An .npy file, mapped and not loaded: memory use does not grow with the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(np.lib.format.open_memmap(path, mode="r"))

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        with replacing(out) as partial:
            flags = self.values.flags
            target = np.lib.format.open_memmap(
                partial,
                mode="w+",
                dtype=self.values.dtype,
                shape=self.values.shape,
                fortran_order=flags.f_contiguous and not flags.c_contiguous,
            )
            yield self._write_into(target)
            target.flush()


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

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        result = np.empty_like(self.values)
        yield self._write_into(result)
        with (
            replacing(out) as partial,
            zipfile.ZipFile(self.path) as old,
            zipfile.ZipFile(partial, "x") as new,
        ):
            for member in old.infolist():
                header = zipfile.ZipInfo(member.filename, member.date_time)
                header.compress_type = member.compress_type
                with new.open(header, "w", force_zip64=True) as target:
                    if member.filename == f"{self.key}.npy":
                        np.lib.format.write_array(target, result, allow_pickle=False)
                    else:
                        with old.open(member) as source:
                            shutil.copyfileobj(source, target)


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

    Files of other kinds and sub-folders are neither read nor copied; ``ignored`` counts them.
    """

    def __init__(self, path: Path, channels: int) -> None:
        require_packages("images", "PIL")
        if channels not in _PNG_MODES:
            raise CliError(f"{path}: PNG images need a model of 1 or 3 channels, this one has {channels}")
        entries = sorted(path.iterdir())
        self.files = [entry for entry in entries if _is_png(entry)]
        self.ignored = len(entries) - len(self.files)
        if not self.files:
            raise CliError(f"{path}: expected PNG images in this folder, found none")
        self.mode = _PNG_MODES[channels]
        self.count = len(self.files)
        self.shape = self._decode(self.files[0]).shape

    def read(self, start: int, stop: int) -> np.ndarray:
        images = []
        for file in self.files[start:stop]:
            image = self._decode(file)
            if image.shape != self.shape:
                first, got = f"{self.shape[0]}x{self.shape[1]}", f"{image.shape[0]}x{image.shape[1]}"
                raise CliError(f"{file}: expected {first} pixels like {self.files[0].name}, got {got}")
            images.append(image)
        return np.stack(images)

    @contextmanager
    def writer(self, out: Path) -> Iterator[Write]:
        from PIL import Image

        partial = beside(out)
        partial.mkdir()

        def write(start: int, stop: int, images: np.ndarray) -> None:
            for file, image in zip(self.files[start:stop], images, strict=True):
                Image.fromarray(image).save(partial / file.name, format="PNG")

        try:
            yield write
            _rename_folder(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _decode(self, file: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(file, formats=["PNG"]) as image:
                if image.mode != self.mode:
                    raise CliError(f"{file}: expected an 8-bit PNG of mode {self.mode}, got mode {image.mode}")
                return np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise CliError(f"{file}: cannot be read as PNG ({error})") from error


def _is_png(entry: Path) -> bool:
    return entry.suffix.lower() == ".png" and entry.is_file()


def _rename_folder(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # A folder with files in it cannot be replaced in one call: move it aside, and back if the rename fails.
    aside = beside(out)
    out.rename(aside)
    try:
        partial.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside)
