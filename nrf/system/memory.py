"""Memory that a step frees is taken again by the next one."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of `mallopt`, malloc.h
MOST = 2**31 - 1  # bytes, the most that it takes


def keep_memory() -> None:
    """Let malloc keep what is freed, on glibc; elsewhere, or where MALLOC_TRIM_THRESHOLD_ is set in the
    environment, nothing changes.

    A training step takes and frees gigabytes in pieces of a hundred megabytes.  By default glibc returns each
    to the system, which clears it page by page when it is next touched: a quarter of a step.  What is kept is
    not always of the size that is next needed, so a process may take twice the memory of its tensors.
    """
    if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            mallopt(threshold, MOST)
