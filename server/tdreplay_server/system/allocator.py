"""The server's process keeps freed memory, because the next message needs it again."""

from __future__ import annotations

import ctypes

from tdreplay_server.system.logs import log

__all__ = ["keep_freed_memory"]

KEPT_BYTES = 32 << 20
"""glibc's largest threshold (`DEFAULT_MMAP_THRESHOLD_MAX`)."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # From glibc's malloc.h.


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep up to 32 MiB of freed memory, and use it again. By itself it hands large blocks back to the kernel at once.

    The kernel gives each new page at the price of a page fault. A batch of 14 MB has 3,500 pages, and their faults took longer than the batch's
    copies. This is a setting of the whole process, so only the server's own process makes it. With another C library nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        log.info("this C library has no mallopt: large inserts will be slower")
        return
    # One arena, because each would keep so much.
    for option, value in ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_ARENA_MAX, 1)):
        mallopt(option, value)
