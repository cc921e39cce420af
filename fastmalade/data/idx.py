"""Reader and writer of IDX files, the format of MNIST: magic number, sizes, then big-endian values."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastmalade.files import write_bytes

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP_MAGIC = b"\x1f\x8b"


class IdxError(ValueError):
    """A file that is not IDX, or an incomplete one."""


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, plain or gzip-compressed; the content decides which, not the name.

    Returns:
        A writable array in native byte order with the file's shape and dtype (uint8, int8, int16, int32, float32 or
        float64).

    Raises:
        FileNotFoundError: no such file.
        IdxError: truncated, too long, a damaged archive, or another format; the message says what was expected.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise IdxError(f"{path}: expected a complete gzip file, got a damaged one ({error})") from error
    if len(raw) < 4 or raw[0] != 0 or raw[1] != 0 or raw[2] not in _DTYPES:
        raise IdxError(f"{path}: expected an IDX file (bytes 00 00 TYPE RANK), got bytes {raw[:4].hex(' ') or 'none'}")
    rank = raw[3]
    header = 4 + 4 * rank
    if len(raw) < header:
        raise IdxError(f"{path}: expected a header of {header} bytes for rank {rank}, got {len(raw)} bytes")
    shape = struct.unpack(f">{rank}I", raw[4:header])
    dtype = _DTYPES[raw[2]]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - header != expected:
        raise IdxError(f"{path}: expected {expected} bytes of data for shape {shape}, got {len(raw) - header}")
    values = np.frombuffer(raw, dtype=dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def write_idx(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write an array as an IDX file, compressed when the name ends in ``.gz``.

    The content goes to a temporary file that is renamed at the end, so an interruption leaves no partial file.

    Raises:
        IdxError: a dtype that IDX cannot hold.
    """
    path = Path(path)
    codes = {dtype.newbyteorder("="): code for code, dtype in _DTYPES.items()}
    if values.dtype not in codes:
        raise IdxError(f"expected one of {sorted(str(d) for d in codes)} for an IDX file, got {values.dtype}")
    code = codes[values.dtype]
    header = bytes((0, 0, code, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    payload = header + np.ascontiguousarray(values).astype(_DTYPES[code]).tobytes()
    if path.name.endswith(".gz"):
        payload = gzip.compress(payload, mtime=0)
    write_bytes(path, payload)
