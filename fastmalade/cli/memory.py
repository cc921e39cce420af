"""How the C library deals with the large blocks that torch takes and gives back at every layer."""

from __future__ import annotations

import ctypes

# Numbers of glibc's <malloc.h>, its public interface.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep blocks that were freed for the next layer, until this process ends.

    glibc gives a block of 32 MiB or more back to the system when it is freed, and the system fills it with zeros page
    by page when it is next asked for: half the time of an attack on a convolutional classifier in batches of 250. For
    a command, which ends with its work; a library has no business changing it for the whole process.

    Returns:
        Whether the C library takes the setting; others than glibc do not have it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(what, value) == 1 for what, value in ((_M_TRIM_THRESHOLD, _NEVER), (_M_MMAP_MAX, 0))
    )
