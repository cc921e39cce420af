"""``fastmalade.purify``: one call from images to purified images."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastmalade.defenses.base import Defense
from fastmalade.pretrained import resolve_path


def purify(
    images: Any,
    *,
    model: str | os.PathLike[str] | Defense = "malade-mnist",
    seed: int | None = None,
    sample_ids: Any = None,
    backend: str | None = None,
    **chain_overrides: Any,
) -> Any:
    """Purify images with a pretrained defence, loaded once and kept.

    Args:
        images: torch tensor, numpy array or object with ``__dlpack__``, never written to; uint8 (0..255) or
            floating in the model's value range ([0, 1] for the shipped ones); (B, C, H, W) or, where
            unambiguous, (B, H, W, C), (B, H, W), (H, W). For a Purifier H and W are multiples of 4.
        model: shipped name, path of a file of ``save_pretrained``, a Purifier or another :class:`fastmalade.Defense`.
        seed: 0 <= seed < 2**64 to repeat a result; None draws a fresh one from the operating system at
            every call.
        sample_ids: B integers that number the images for the noise, 0 <= id < 2**64; 0..B-1 by default.
        backend: "torch", "cpu", "cuda" or "triton"; by default ``FASTMALADE_BACKEND``, else chosen by dtype and
            device. For a Purifier only.
        chain_overrides: fields of :class:`fastmalade.ChainConfig`, for example ``n_steps=25``. For a Purifier only:
            other defences have their settings as attributes.

    Returns:
        Images of the same kind, dtype, device and layout.

    Raises:
        FileNotFoundError, PretrainedError: see :meth:`Defense.from_pretrained`.
        TypeError: a backend or an override for a defence other than a Purifier, or see :meth:`Purifier.purify`.
        ValueError, FloatingPointError, BackendUnavailableError: see :meth:`Purifier.purify`.
    """
    if not isinstance(model, Defense):
        path = resolve_path(model)
        status = path.stat()
        model = _loaded(path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    overrides = chain_overrides if backend is None else {"backend": backend, **chain_overrides}
    return model.purify(images, seed=seed, sample_ids=sample_ids, **overrides)


@lru_cache(maxsize=8)
def _loaded(path: Path, device: int, inode: int, modified_ns: int, size: int) -> Defense:
    # The rest of the arguments identifies the file's content, so that a file that was replaced is loaded again.
    return Defense.from_pretrained(path)
