"""Tile sizes of the Triton kernels: defaults, what was tuned for a device, what a user has pinned.

A configuration is a JSON file ``{device name: {stage: {"block_m": 128, "num_warps": 4, "num_stages": 2}}}``, where a
stage may be left out and the device "*" stands for any. The environment variable FASTMALADE_TRITON_CONFIG names one;
without it the file that ``tools/tune_triton.py`` has written to the user's cache is read, and without that the defaults
hold. The file is read once per process, so that a result cannot change in the middle of a run.

No tile depends on the batch, and none changes the order of an accumulation: block_k and block_n cannot be set. In
float32 every configuration therefore gives the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

from fastmalade.files import user_cache

VARIABLE = "FASTMALADE_TRITON_CONFIG"
BLOCK_K = 16
"""Depth of a product's block. Found by compiling: with twice as much the float32 tiles no longer fit the registers."""
MAX_BLOCK_N = 32
"""Most output channels of a product's block. Predicted: 25 channels, the most of Table 8, are one block."""
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""For every launch: products are sums of fused multiply-adds. Triton's own default differs between its versions."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """Output positions per block (or elements, for the stages without a product), warps, and load stages."""

    block_m: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a launch."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **OPTIONS}

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("block_m", self.block_m, [2**n for n in range(4, 11)]),
            ("num_warps", self.num_warps, [1, 2, 4, 8]),
            ("num_stages", self.num_stages, [1, 2, 3, 4, 5]),
        ):
            if isinstance(value, bool) or value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")


# None of these tiles is measured on a GPU. Products have eight results a thread, 64 positions by 16 or 32 channels over
# 4 or 8 warps. That was found by compiling: with sixteen, ptxas runs out of registers and spills
# (tools/gpu_resources_triton.py). In the other stages a thread has one patch, position or quad; the size of their
# blocks is predicted from registers, of which the tail's 128 leave room for several blocks on a multiprocessor.
_PRODUCT = Tile(block_m=64, num_warps=4, num_stages=2)
_WIDE_PRODUCT = Tile(block_m=64, num_warps=8, num_stages=2)
DEFAULTS: dict[str, Tile] = {
    "conv1": _PRODUCT,
    "conv2": _WIDE_PRODUCT,
    "deconv1": _PRODUCT,
    "tail": Tile(block_m=64, num_warps=2, num_stages=1),
    "tail_cotangent": Tile(block_m=64, num_warps=2, num_stages=1),
    "even_cotangent": Tile(block_m=128, num_warps=4, num_stages=1),
    "deconv2_backward": _PRODUCT,
    "deconv1_backward": _WIDE_PRODUCT,
    "conv2_backward": _PRODUCT,
    "conv1_backward": _PRODUCT,
    "update": Tile(block_m=128, num_warps=4, num_stages=1),
}
"""Every stage with the tile it has where nothing else is known: found by compiling, not measured on a GPU."""


def cache_file() -> Path:
    """Where tuned tiles are kept."""
    return user_cache() / "triton-tiles.json"


def tiles(device_name: str) -> dict[str, Tile]:
    """The tile of every stage on a device.

    Raises ValueError for a pinned or cached file that is not what the module's description says, and
    FileNotFoundError where the pinned one does not exist.
    """
    pinned = os.environ.get(VARIABLE)
    return _tiles(device_name, pinned or None)


@functools.lru_cache(maxsize=32)
def _tiles(device_name: str, pinned: str | None) -> dict[str, Tile]:
    path = Path(pinned) if pinned else cache_file()
    if pinned is None and not path.is_file():
        return dict(DEFAULTS)
    return DEFAULTS | read(path, device_name)


def read(path: Path, device_name: str) -> dict[str, Tile]:
    """The stages that a file sets for a device."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: expected an object of devices, got {type(table).__name__}")
    settings: dict[str, Any] = {}
    for device in ("*", device_name):
        entry = table.get(device, {})
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {device}: expected an object of stages, got {type(entry).__name__}")
        settings |= entry
    unknown = sorted(set(settings) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"{path}: expected stages among {', '.join(DEFAULTS)}, got {', '.join(unknown)}")
    found = {}
    for stage, values in settings.items():
        try:
            found[stage] = dataclasses.replace(DEFAULTS[stage], **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {stage}: {error}") from error
    return found
