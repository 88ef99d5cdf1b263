"""Memory that a training step frees and the next one takes again, on a CPU."""

from __future__ import annotations

import ctypes

from fastscore._support.checks import check_int, fail

# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory(mebibytes: int = 256) -> bool:
    """Make this process keep what it frees, so that each training step finds its memory in place.

    PyTorch's tensors on a CPU come from ``malloc``. glibc's gives large blocks that are freed back
    to the system, and with the next step every page of them has to be mapped and cleared again,
    which may take longer than the work done on it. This sets glibc's thresholds for the whole
    process, not for this library alone: up to ``mebibytes`` of freed memory stay with it, and
    blocks of up to 32 MiB take part. Call it once, before training; jemalloc and tcmalloc, where
    they are loaded, keep freed memory of themselves.

    Args:
        mebibytes: how much freed memory to keep at the end of the heap, 1 to 2047.

    Returns:
        Whether it was done: False where the C library is not glibc.

    Raises:
        TypeError, ValueError: ``mebibytes`` is not such an integer.

    >>> keep_freed_memory(256)  # doctest: +SKIP
    True
    """
    check_int("keep_freed_memory", "mebibytes", mebibytes, minimum=1)
    if mebibytes > 2047:
        fail("keep_freed_memory", "mebibytes", "at most 2047", mebibytes)
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    set_option = library.mallopt
    kept = set_option(_TRIM_THRESHOLD, mebibytes << 20)
    return bool(kept and set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
