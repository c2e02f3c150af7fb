"""How the C library treats freed memory: one setting for a process that moves large tensors all the time."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 << 20  # the largest threshold that glibc takes


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Keep up to `kept_bytes` of what is freed at the end of a heap; False where that cannot be set.

    By default glibc gives the buffers of every message back to the kernel and gets them again page by page,
    each cleared anew: about a third of what moving a tensor costs. The price is that a process keeps, per
    heap, up to that much of memory it has once used. Linux with glibc; for the whole process.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, kept_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, kept_bytes))
