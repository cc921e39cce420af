"""Writing files and folders whole or not at all.

What is not finished lies under a hidden name beside the final one. A run that is killed cannot remove it; the next run
that writes the same target does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOREIGN_DAYS = 7
"""A leftover of another machine is removed when it has not changed for so long: its process cannot be looked up."""


def beside(path: Path, mark: str = "partial") -> Path:
    """A fresh hidden name in the folder of ``path``, with its suffix: what is written there can be renamed to it.

    The name tells which process of which machine made it, and ``mark`` what it is.
    """
    return path.with_name(f".{path.stem}.{_machine()}.{os.getpid()}.{secrets.token_hex(4)}.{mark}{path.suffix}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write a file to, which becomes ``path`` when the block is left normally.

    When the block is left by an exception nothing stays behind and an old file keeps its content. The content is on
    the disk before the rename, so that a crash cannot leave an empty file under the final name. What killed runs left
    of the same target is removed first.

    Raises:
        OSError: it cannot be written; one that names no file, such as that of a full disk, is given the name ``path``.
    """
    final = Path(path)
    _sweep(final)
    partial = beside(final)
    try:
        with _naming(final, partial):
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``path`` when the block is left normally; otherwise as `replacing`.

    A folder that is at ``path`` already is replaced with all that is in it.
    """
    final = Path(path)
    _sweep(final)
    partial = beside(final)
    try:
        with _naming(final, partial):
            partial.mkdir()
            yield partial
            _rename_folder(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write ``content``, whole or not at all.

    Libraries that are given a path report a full disk each in its own way (safetensors and torch not as an OSError), so
    what they make goes through memory and this function.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int = 1) -> None:
    """Write ``value`` as indented JSON with a newline at the end, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append ``line`` and a newline to a text file, both or neither."""
    final = Path(path)
    with _naming(final), final.open("ab", buffering=0) as file:
        content = (line + "\n").encode()
        before = file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


@contextmanager
def _naming(final: Path, partial: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, or the hidden one or one in it, name ``final``."""
    try:
        yield
    except OSError as error:
        named, hidden = str(error.filename or ""), str(partial or final)
        if named and not named.startswith(hidden):
            raise
        if error.errno is None:  # numpy counts the values it could not write, and gives no number
            raise OSError(f"{final}: cannot be written ({error})") from error
        place = str(final) + named.removeprefix(hidden)
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), place) from error


def _rename_folder(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    # A folder with files in it cannot be replaced in one call: move it aside, and back if the rename fails.
    aside = beside(final, "old")
    final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        aside.rename(final)
        raise
    shutil.rmtree(aside)


def _machine() -> str:
    """Eight hexadecimal digits for what a process id belongs to: the host by name and, on Linux, the pid namespace."""
    namespace = Path("/proc/self/ns/pid")
    inode = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{socket.gethostname()} {inode}".encode()).hexdigest()[:8]


def _sweep(final: Path) -> None:
    """Remove what runs that are gone have left of the target ``final``.

    A leftover of this machine goes when no process has its number; one of another machine, container or older version
    when it has not changed for FOREIGN_DAYS. A folder that was moved aside holds the user's own earlier output: it
    goes only when there is a folder at ``final`` again. What cannot be removed is reported as a warning.
    """
    stem, suffix = re.escape(final.stem), re.escape(final.suffix)
    pattern = re.compile(rf"\.{stem}\.(?:([0-9a-f]{{8}})\.)?([0-9]+)\.[0-9a-f]{{8}}\.(partial|old){suffix}")
    try:
        names = os.listdir(final.parent)
    except OSError:
        return  # what cannot be listed cannot be swept; whether it can be written into, the writing itself says
    for name in names:
        found = pattern.fullmatch(name)
        if found is None or (found[3] == "old" and not final.exists()):
            continue
        entry = final.parent / name
        try:
            if _abandoned(entry, found[1], int(found[2])):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        except FileNotFoundError:
            continue  # another run has swept it
        except OSError as error:
            warnings.warn(f"{entry}: left by a run that is gone, cannot be removed ({error})", stacklevel=4)


def _abandoned(entry: Path, machine: str | None, pid: int) -> bool:
    if machine == _machine():
        return not _lives(pid)
    return time.time() - entry.lstat().st_mtime > FOREIGN_DAYS * 86400


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and belongs to another user
        return True
    return True


def user_cache() -> Path:
    """The folder of this package for files that can be made again, where the system keeps those of a user.

    Without platformdirs, as in a checkout that was not installed, it is where that puts it on Linux.
    """
    try:
        from platformdirs import user_cache_dir
    except ModuleNotFoundError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmalade"
    return Path(user_cache_dir("fastmalade"))
