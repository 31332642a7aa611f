"""Freed memory stays with the process, up to a bound: what is allocated next need not be touched page by page."""

import ctypes
import sys

# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, at the largest values to which it adapts them by itself. It does so as
# blocks are freed, which does not help threads that read a MiB at a time: most of their time went into touching pages.
_THRESHOLDS = {-3: 2**25, -1: 2**26}


def keep_freed_memory() -> None:
    """Has glibc give memory back to the system in large pieces only; other C libraries stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in _THRESHOLDS.items():
            mallopt(parameter, value)
