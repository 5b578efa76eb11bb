"""Keep glibc from returning memory to the system after every batch of a forward pass on the CPU."""

import ctypes
import os
import sys
from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Numbers of two parameters of glibc's mallopt."""
LARGEST_ON_HEAP = 32 * 2**20
"""Bytes; the maximum of glibc, which it also reaches by itself after blocks of that size were freed."""
RETAINED = 512 * 2**20
"""Free bytes at the end of the heap that are not returned to the system."""


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory at the end of its heap until the process ends.

    Otherwise the pages of the activations are mapped and cleared again in every batch: extraction of the `cnn` of
    benchmarks/extraction.py takes 1.4 times as long (7.3 s instead of 5.1 s for 10,000 images on one core). Settings of
    the user take precedence.

    Returns:
        Whether the setting was changed; False for other C libraries.
    """
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        n.startswith("MALLOC_") for n in os.environ
    )
    if configured or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP) and library.mallopt(TRIM_THRESHOLD, RETAINED))
