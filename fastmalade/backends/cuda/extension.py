"""Loads the extension module ``fastmalade._cuda``, and says whether a device can run its code.

The module is imported on first use, so importing this file never fails.
"""

from __future__ import annotations

from types import ModuleType

from fastmalade.backends.extensions import BackendUnavailableError, import_extension

_extension: ModuleType | None = None
_usable: set[tuple[int, int]] = set()  # (id of the extension, device) that were found to work, which cannot change


def load() -> ModuleType:
    """The extension module, or BackendUnavailableError with the reason it cannot be loaded."""
    global _extension
    if _extension is None:
        _extension = import_extension("cuda", "the CUDA extension")
    return _extension


def unavailable_reason(device: int | None = None) -> str | None:
    """None if a chain can run on CUDA device ``device`` (the first where None), else why not.

    The reasons are: the extension was not built, the driver is missing, there is no such device, or this build has no
    code for it.
    """
    try:
        extension = load()
    except BackendUnavailableError as error:
        return str(error)
    index = device or 0
    if (id(extension), index) in _usable:
        return None
    count, why = extension.device_count()
    if count < 0:
        return f"no working CUDA driver on this machine ({why})"
    if count == 0:
        return "the CUDA driver finds no GPU on this machine"
    if index >= count:
        return f"expected a CUDA device from 0 to {count - 1}, got {index}"
    facts = extension.device(index)
    if facts["missing_code"]:
        capability = ".".join(map(str, facts["capability"]))
        return (
            f"this build has code for {extension.architectures}, not for the {facts['name']} of capability "
            f"{capability} ({facts['missing_code']})"
        )
    _usable.add((id(extension), index))
    return None


def architectures() -> str:
    """The GPUs the extension was compiled for, like "sm_80, sm_90, compute_90"; BackendUnavailableError without it."""
    return str(load().architectures)
