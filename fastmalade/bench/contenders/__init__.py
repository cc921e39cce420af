"""All contenders by name. No peer's library is imported before it is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fastmalade.bench.contenders.base import Chain, Contender
from fastmalade.bench.contenders.compiled import Compiled
from fastmalade.bench.contenders.eager import Eager, EagerChannelsLast
from fastmalade.bench.contenders.jax_jit import Jax
from fastmalade.bench.contenders.native import Native
from fastmalade.bench.contenders.onnx_runtime import OnnxRuntime
from fastmalade.bench.contenders.openvino_runtime import OpenVino

__all__ = ["PEERS", "REWRITTEN", "Chain", "Contender", "Native", "select"]

PEERS: dict[str, Callable[[], Contender]] = {
    cls.name: cls for cls in (Eager, EagerChannelsLast, Compiled, OnnxRuntime, OpenVino, Jax)
}
"""Peers that run the layers of Table 8 as they are."""

REWRITTEN: dict[str, Callable[[], Contender]] = {
    f"{cls.name}-rewritten": partial(cls, is_rewritten=True) for cls in (Eager, Compiled, OnnxRuntime, OpenVino, Jax)
}
"""Peers that run the graph of :mod:`fastmalade.bench.rewritten`."""


def select(names: Sequence[str], isas: Sequence[str] = (), threads: int = 1) -> list[Contender]:
    """The native contender, once per instruction set asked for, and the peers of these names.

    In a run of several threads the native contender comes on one thread as well.

    "all" stands for every peer, "rewritten" for every rewritten one, "none" for no peer.

    Raises:
        ValueError: a name that is none of these.
    """
    known = {**PEERS, **REWRITTEN}
    groups = {"all": list(PEERS), "rewritten": list(REWRITTEN), "none": []}
    chosen: dict[str, None] = {}
    for name in names:
        if name not in known and name not in groups:
            raise ValueError(f"peers: expected any of {', '.join([*groups, *known])}, got {name!r}")
        chosen.update(dict.fromkeys(groups.get(name, [name])))
    native = [Native(isa) for isa in isas] or [Native()]
    if threads > 1:
        native += [Native(isa, threads=1) for isa in isas or (None,)]
    return [*native, *(known[name]() for name in chosen)]
