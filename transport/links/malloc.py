"""A setting of the C library for processes that allocate and free large tensors all the time."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 << 20  # the largest threshold that glibc accepts


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Keep up to `kept_bytes` of freed memory at the end of each heap. Returns False if that is not possible.

    By default glibc returns the buffers of each message to the kernel and gets them again page by page, each
    cleared anew. That is about a third of the cost of moving a tensor. The price: a process keeps up to that
    much memory per heap. Only Linux with glibc; for the whole process.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, kept_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, kept_bytes))
