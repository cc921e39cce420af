"""The Langevin chain: its settings, how a call runs, its operators and its gradient."""

from __future__ import annotations

from fastmalade.chain.call import langevin_chain, langevin_trajectory
from fastmalade.chain.config import ChainConfig

__all__ = ["ChainConfig", "langevin_chain", "langevin_trajectory"]
