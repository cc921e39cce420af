"""Command line: ``fastmalade purify | demo | info | train | evaluate``, one module per verb."""

from __future__ import annotations
