"""The user's own directory of caches, which nobody else may read or write."""

import os
from pathlib import Path

from ckpt_probe.errors import DataError

CACHE_VARIABLE = "CKPT_PROBE_CACHE"


def cache_directory() -> Path:
    """Return the directory of the cache: CKPT_PROBE_CACHE, or ckpt-probe in the user's directory of caches."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "ckpt-probe"


def private_cache(kind: str) -> Path:
    """Return a subdirectory of the cache; create both with access for this user alone.

    Contents of the cache are trusted, so a cache that others may have written is refused.

    Args:
        kind: Name of the subdirectory.

    Raises:
        DataError: If the cache cannot be written, belongs to another user, or others may read or write it.
    """
    directory = cache_directory()
    advice = f"or name another directory by {CACHE_VARIABLE}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            raise DataError(f"{directory}: the cache belongs to another user; remove it, {advice}")
        if os.name == "posix" and status.st_mode & 0o077:
            mode = f"{status.st_mode & 0o777:o}"
            raise DataError(f"{directory}: others may use this cache (mode {mode}); chmod 700 it, {advice}")
        (directory / kind).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror}; make it writable, {advice}") from error
    return directory / kind


def cached_file(kind: str, name: str) -> Path:
    """Return the path of a file in a subdirectory of the cache; remove a pipe or socket in its place.

    Raises:
        DataError: As in `private_cache`.
    """
    file = private_cache(kind) / name
    if file.is_fifo() or file.is_socket():
        file.unlink()
    return file
