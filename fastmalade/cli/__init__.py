"""Command line: ``fastmalade purify | demo | info | train | evaluate | attack | bench``, one module per command."""

from __future__ import annotations
