"""``fastmalade.purify``: one call from images to purified images."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastmalade.defenses.base import Defense
from fastmalade.defenses.purifier import Purifier
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
            unambiguous, (B, H, W, C), (B, H, W), (H, W); H and W multiples of 4, or what another defence asks for.
        model: shipped name, path of a file of ``save_pretrained``, a Purifier or another :class:`fastmalade.Defense`.
        seed: 0 <= seed < 2**64 to repeat a result; None draws a fresh one from the operating system at
            every call.
        sample_ids: B integers that number the images for the noise, 0..B-1 by default.
        backend: "torch", "cpu", "cuda" or "triton"; by default ``FASTMALADE_BACKEND``, else chosen by dtype and
            device. For a Purifier only.
        chain_overrides: fields of :class:`fastmalade.ChainConfig`, for example ``n_steps=25``. For a Purifier only:
            the settings of other defences are attributes of their own.

    Returns:
        Images of the same kind, dtype, device and layout.

    Raises:
        FileNotFoundError, PretrainedError: see :meth:`Defense.from_pretrained`.
        TypeError: a backend or an override for a defence that is no Purifier, or see :meth:`Purifier.purify`.
        ValueError, FloatingPointError, BackendUnavailableError: see :meth:`Purifier.purify`.
    """
    if not isinstance(model, Defense):
        path = resolve_path(model)
        status = path.stat()
        model = _loaded(path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if isinstance(model, Purifier):
        return model.purify(images, seed=seed, sample_ids=sample_ids, backend=backend, **chain_overrides)
    given = [*chain_overrides] if backend is None else ["backend", *chain_overrides]
    if given:
        raise TypeError(f"{', '.join(given)}: expected a Purifier to set this for, got {type(model).__name__}")
    return model.purify(images, seed=seed, sample_ids=sample_ids)


@lru_cache(maxsize=8)
def _loaded(path: Path, device: int, inode: int, modified_ns: int, size: int) -> Defense:
    # Which file it is, its time and size are part of the key, so that a file written anew is loaded anew.
    return Defense.from_pretrained(path)
