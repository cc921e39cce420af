"""What runs under Triton's interpreter runs in a process of its own: the variable that switches it on is read once."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET", "0") in {"", "0"}:
    collect_ignore = ["interpreted"]
