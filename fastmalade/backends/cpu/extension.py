"""Loading the extension module ``fastmalade._cpu``, and the instruction set that its kernels run with.

It is imported on first use, so that importing this file never fails. The instruction set is the widest one that was
built and that the processor has; the environment variable FASTMALADE_CPU_ISA, read at each call, forces one.
"""

from __future__ import annotations

from types import ModuleType

from fastmalade.backends.extensions import BackendUnavailableError, import_extension

_extension: ModuleType | None = None
_supported: tuple[ModuleType | None, tuple[str, ...]] = (None, ())  # the answer of isas_supported, and whose it is


def load() -> ModuleType:
    """The extension module, or BackendUnavailableError with the reason it cannot be loaded."""
    global _extension
    if _extension is None:
        _extension = import_extension("cpu", "the native CPU extension")
    return _extension


def environment(name: str) -> str | None:
    """An environment variable, None where it is not set or empty: a fifth of what ``os.environ.get`` takes."""
    value: str | None = load().environment(name)
    return value


def unavailable_reason() -> str | None:
    """None if the extension loads on this machine, else why it does not."""
    try:
        load()
    except BackendUnavailableError as error:
        return str(error)
    return None


def isas_built() -> list[str]:
    """Instruction sets in this build, most portable first; BackendUnavailableError without the extension."""
    return list(load().isas_built())


def isas_supported() -> list[str]:
    """Those of ``isas_built()`` that this processor and operating system run."""
    return list(_isas_supported())


def _isas_supported() -> tuple[str, ...]:
    global _supported
    extension = load()
    if _supported[0] is not extension:
        _supported = (extension, tuple(extension.isas_supported()))
    return _supported[1]


def isa_in_use() -> str:
    """The instruction set the next call uses: "baseline", "avx2" or "avx512".

    Raises BackendUnavailableError where FASTMALADE_CPU_ISA names one that this build or this processor lacks.
    """
    supported = _isas_supported()
    forced = environment("FASTMALADE_CPU_ISA")
    if not forced:
        return supported[-1]
    if forced in supported:
        return forced
    built = isas_built()
    lack = "this processor lacks it" if forced in built else f"this build has {', '.join(built)}"
    raise BackendUnavailableError(
        f"FASTMALADE_CPU_ISA: expected one of {', '.join(supported)} on this machine, got {forced!r} ({lack})"
    )
