"""Kernels written in Python; their sources lie in ``kernels/``, as those of the other backends do."""

from __future__ import annotations

from pathlib import Path

# A wheel has them below this folder; a source tree and an editable installation have them where they were written.
_SOURCES = Path(__file__).resolve().parents[2] / "kernels"
if (_SOURCES / "triton" / "convolution.py").is_file():
    __path__.append(str(_SOURCES))
