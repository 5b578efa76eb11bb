"""Files fetched from elsewhere, kept under the hash of their content; the least recently used go first.

`files/` holds contents by SHA-256, `names/` which content an address had under which validator (ETag, time, size), and
`open/` a folder for each process that is at work, in which a file is complete before it gets a name. Processes share
the cache without locks: each name is given by one rename, and two that fetch the same file give it the same one.
"""

import atexit
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import content_hash, host_name, is_alive, write_text
from ckpt_probe.remote.hosts import Found, blocks, look

CACHE = "CKPT_PROBE_CACHE"
LIMIT = "CKPT_PROBE_CACHE_LIMIT"
DEFAULT_LIMIT = "20GiB"


def root() -> Path:
    """Where the cache is, by CKPT_PROBE_CACHE, XDG_CACHE_HOME or the home directory."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "ckpt-probe"


def limit() -> int:
    """Bytes that the cache may hold, by CKPT_PROBE_CACHE_LIMIT. Raises UsageError where that is no size."""
    text = os.environ.get(LIMIT, DEFAULT_LIMIT)
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(i?)B?\s*", text, flags=re.IGNORECASE)
    if found is None:
        raise UsageError(f"{LIMIT}: expected a size such as 20GiB, found {text!r}")
    return int(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")


def own_folder() -> Path:
    """The folder of this process, gone when it ends; what processes left that were killed is removed."""
    return _own_folder(root(), os.getpid())


@cache
def _own_folder(where: Path, process: int) -> Path:
    every = where / "open"
    mine = every / f"{host_name()}-{process}"
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        every.mkdir(exist_ok=True)
        for left in every.iterdir():
            host, _, number = left.name.rpartition("-")
            if host == host_name() and number.isdigit() and (left == mine or not is_alive(int(number))):
                shutil.rmtree(left, ignore_errors=True)
        mine.mkdir()
    except OSError as error:
        raise DataError(f"{where}: cannot be written: {error.strerror}; name another directory by {CACHE}") from error
    atexit.register(_remove_own, mine, process)
    return mine


def fetch(file: Found, target: Path) -> None:
    """Give a file's content the name `target`, in the folder of this process; from the cache where it is there, whole.

    Raises DataError where it is larger than the cache or the disk allows, and as `hosts.blocks`.
    """
    known = _entry(file)
    for _ in range(2):
        if known is not None and _linked(_content(known), target, known):
            return
        known = _fetched(file)
    raise DataError(f"{file.address}: gone from the cache at once; raise {LIMIT}, or end what else uses {root()}")


def _fetched(file: Found) -> str:
    """Fetch a file into the cache; returns the hash of its content."""
    most = limit()
    if file.size > most:
        raise DataError(f"{file.address}: {file.size:,} bytes, more than the cache may hold; raise {LIMIT} ({most:,})")
    free = shutil.disk_usage(own_folder()).free
    if file.size > free:
        raise DataError(f"{file.address}: {file.size:,} bytes, but only {free:,} are free in {root()}; see {CACHE}")
    part = own_folder() / f"part-{hashlib.sha256(file.address.encode()).hexdigest()[:16]}-{os.urandom(4).hex()}"
    told = hashlib.sha256()
    try:
        with part.open("wb") as opened:
            for data in blocks(file):
                told.update(data)
                opened.write(data)
            if look(file.address) != file:
                raise DataError(f"{file.address}: changed while it was fetched; try again when no program writes to it")
            opened.flush()
            os.fsync(opened.fileno())
        found = told.hexdigest()
        content = _content(found)
        content.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o600)
        part.replace(content)
    except OSError as error:
        raise DataError(f"{file.address}: cannot be kept in {root()}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    if file.validator:
        write_text(_name(file), json.dumps({"address": file.address, "sha256": found}), overwrite=True)
    _make_room(most, found)
    return found


def _linked(content: Path, target: Path, known: str) -> bool:
    """Whether the content was there, and what its name says; a damaged one is removed."""
    try:
        # The time of its last use, by which the oldest go first.
        os.utime(content)
        if content_hash(content) != known:
            content.unlink(missing_ok=True)
            return False
        waiting = target.with_name(f".{os.urandom(8).hex()}.part")
        try:
            waiting.hardlink_to(content)
        except FileNotFoundError:
            return False
        except OSError:  # a file system without hard links
            shutil.copyfile(content, waiting)
        waiting.replace(target)
    except (OSError, DataError):
        return False
    return True


def _make_room(most: int, but: str) -> None:
    """Remove the least recently used until the cache holds no more than it may."""
    kept = []
    for content in (root() / "files").glob("*/*"):
        with suppress(OSError):  # another process removed it
            told = content.stat()
            kept.append((told.st_mtime_ns, told.st_size, content))
    total = sum(size for _, size, _ in kept)
    for _, size, content in sorted(kept):
        if total <= most:
            return
        if content.name != but:
            with suppress(OSError):
                content.unlink()
            total -= size


def _entry(file: Found) -> str | None:
    """The hash of the content that is known of this address and validator, None where none is."""
    if not file.validator:
        return None
    try:
        found = json.loads(_name(file).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def _name(file: Found) -> Path:
    key = json.dumps([file.address, file.size, file.validator])
    return root() / "names" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _content(found: str) -> Path:
    return root() / "files" / found[:2] / found


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
