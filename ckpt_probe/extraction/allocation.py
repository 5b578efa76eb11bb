"""The C library's heap, which a forward pass on the CPU fills and empties in every batch."""

import ctypes
import os
import sys
from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""glibc's numbers of these settings of mallopt."""
LARGEST_ON_HEAP = 32 * 2**20
"""Bytes; the most that glibc takes, and comes to by itself once blocks of that size were freed."""
KEPT = 512 * 2**20
"""Bytes at the end of the heap that are kept."""


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep what is freed at the end of its heap, for as long as the process runs; whether it does so.

    Given back in between, the pages of the activations are mapped and cleared anew in every batch, which takes a tenth
    of the time of a small network. A user's own setting stands; other C libraries are left alone.
    """
    told = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(n.startswith("MALLOC_") for n in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP) and library.mallopt(TRIM_THRESHOLD, KEPT))
