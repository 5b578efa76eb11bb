"""Files elsewhere as local ones: a tree of names and sizes, whose bytes are read where they are, or fetched.

Every address has its place in the folder of this process, `s3/bucket/run/step-100.safetensors`, so that whoever looks
at names and sizes sees an ordinary directory. A file there is empty of data until `whole` has fetched it; `read_at`
reads a part of it from its host. What is empty reads as zeros, which no format takes for its own.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from ckpt_probe.addresses import SCHEMES, Address, is_address, place, redacted
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.remote.failures import NoPartsError
from ckpt_probe.remote.hosts import Found, blocks, listing, look
from ckpt_probe.remote.store import fetch, own_folder, root

BEGINNING = 64 * 1024
"""Bytes that are read at first, in which most headers lie."""
TEXTS = frozenset({".json", ".txt", ".model", ".jinja", ".yaml", ".yml"})
LARGEST_TEXT = 64 * 2**20
OF_WEB = ("http", "https")


@dataclass
class _Away:
    """A file of the tree: what is known of it, its first bytes once they were read, and whether it is fetched.

    parted: whether it was read by parts, which are of one file only if it has not changed since.
    """

    found: Found
    beginning: bytes | None = None
    parted: bool = False
    here: bool = False
    users: int = 0


_files: dict[Path, _Away] = {}
_listed: set[Path] = set()
_turn = threading.RLock()


@contextmanager
def brought(path: Path | str) -> Iterator[Path]:
    """A local path for the time of a `with`, and errors that name the address; a local path is given back as it is.

    A single file's neighbours are there too, where its host lists them. What was fetched meanwhile leaves the disk at
    the end, but for the cache. Raises DataError where nothing is at the address or its host cannot be asked, and at
    the end where a file that was read by parts has changed meanwhile.
    """
    with shown(path) as local:
        if not _is_of_tree(local):
            yield local
            return
        _use(local, 1)
        try:
            yield local
            _require_unchanged(local)
        finally:
            _use(local, -1)


@contextmanager
def shown(path: Path | str) -> Iterator[Path]:
    """As `brought`, to look at names and sizes: what is fetched meanwhile may stay."""
    if not is_address(path):
        yield Path(path)
        return
    local = _materialised(str(place(path)))
    with told_by_address():
        yield local


@contextmanager
def kept(path: Path | str) -> Iterator[Path]:
    """As `brought`, with every file fetched, and there until this process ends."""
    if not is_address(path):
        yield Path(path)
        return
    local = _materialised(str(place(path)))
    with told_by_address():
        for file in sorted(known for known in _files if known == local or local in known.parents):
            whole(file)
            _files[file].users += 1
        yield local


@contextmanager
def told_by_address() -> Iterator[None]:
    """While entered, an error that names a file of the tree names its address instead."""
    try:
        yield
    except CkptProbeError as error:
        text = by_address(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def named(path: Path) -> Path:
    """The address of a file of the tree; any other path as it is."""
    folder = _tree()
    if folder is None or not path.is_relative_to(folder):
        return path
    scheme, *rest = path.relative_to(folder).parts or ("",)
    return Address(f"{scheme}://{'/'.join(rest)}") if rest else path


def here(path: Path) -> Path:
    """The place in the tree of an address that was opened before; any other path as it is."""
    return _local(str(place(path))) if is_address(path) else path


def by_address(text: str) -> str:
    """A text in which files of the tree are called by their addresses."""
    folder = _tree()
    if folder is not None and str(folder) in text:
        for scheme in SCHEMES:
            text = text.replace(f"{folder}/{scheme}/", f"{scheme}://")
    return redacted(text)


def is_away(path: Path) -> bool:
    """Whether the bytes of a file are not here."""
    away = _files.get(path)
    return away is not None and not away.here


def read_at(path: Path, start: int, length: int) -> bytes:
    """Bytes of a file, from where they are; fewer only where it ends. Raises DataError where its host gives others."""
    away = _files.get(path)
    if away is None or away.here or not away.found.ranges:
        whole(path)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    found = away.found
    stop = min(start + length, found.size)
    try:
        if away.beginning is None and start < BEGINNING:
            away.beginning = b"".join(blocks(found, 0, min(BEGINNING, found.size)))
        if away.beginning is not None and stop <= len(away.beginning):
            return away.beginning[start:stop]
        away.parted = True
        data = bytearray()
        for block in blocks(found, start, stop):
            data += block
    except NoPartsError:
        # Many a host does not say so before.
        away.found = replace(found, ranges=False)
        return read_at(path, start, length)
    return bytes(data)


def whole(path: Path) -> Path:
    """The same path, the file at it fetched if its bytes are not here. Raises DataError as `store.fetch`."""
    away = _files.get(path)
    if away is not None and not away.here:
        with _turn:
            if not away.here:
                fetch(away.found, path)
                away.here = True
    return path


def settle(folder: Path) -> None:
    """Fetch the texts of a directory of the tree, and of the one above: configuration, tokenizer, a trainer's state."""
    for file in [known for known in _files if known.parent in (folder, folder.parent)]:
        if file.suffix in TEXTS and _files[file].found.size <= LARGEST_TEXT:
            whole(file)


def beside(path: Path) -> Path:
    """Where to keep what is computed of a file: the directory it lies in; of one elsewhere a folder of the cache."""
    address = named(path)
    if address is path:
        return path.parent
    return root() / "beside" / sha256(str(address.parent).encode()).hexdigest()[:24]


def _is_of_tree(path: Path) -> bool:
    folder = _tree()
    return folder is not None and path.is_relative_to(folder)


def _tree() -> Path | None:
    """The folder that all addresses have their places in; None where there was none yet."""
    return own_folder() / "tree" if _files or _listed else None


def _local(address: str) -> Path:
    scheme, _, rest = address.partition("://")
    parts = rest.split("/")
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise DataError(f"{address}: not the address of a file or directory")
    return own_folder() / "tree" / scheme / rest


def _materialised(address: str) -> Path:
    """The place of an address, made anew where the file has changed, with what is below it or beside it."""
    local = _local(address)
    found = look(address)
    with _turn:
        if found is not None:
            _put(local, found)
            scheme = address.partition(":")[0]
            if scheme not in OF_WEB and local.parent not in _listed:
                _put_neighbours(address, local)
            return local
        _listed.add(local)
        for file in listing(address, deep=True):
            _put(_local(file.address), file)
        with _made_here(local, address):
            local.mkdir(parents=True, exist_ok=True)
    return local


def _put_neighbours(address: str, local: Path) -> None:
    """What lies beside a file that was named; nothing where its host does not tell that."""
    _listed.add(local.parent)
    above = address.rpartition("/")[0]
    if not above.partition("://")[2]:
        return
    # Who may read one file may not be allowed to list others, and need not.
    with suppress(DataError):
        for file in listing(above, deep=False):
            _put(_local(file.address), file)


def _require_unchanged(local: Path) -> None:
    """Raise DataError where a file here, or beside it, was read by parts and is another now."""
    for file, away in list(_files.items()):
        if away.parted and (file == local or local in file.parents or local.parent == file.parent):
            away.parted = False
            now = look(away.found.address)
            if now != away.found:
                if now is not None:
                    _put(file, now)
                told = "changed while it was read, so that parts of two files were mixed"
                raise DataError(f"{away.found.address}: {told}; try again when no program writes to it")


def _put(local: Path, found: Found) -> None:
    """A file of the right name and size, without data."""
    before = _files.get(local)
    if before is not None and before.found == found:
        return
    with _made_here(local, found.address):
        local.parent.mkdir(parents=True, exist_ok=True)
        _empty(local, found.size)
    _files[local] = _Away(found)


def _empty(local: Path, size: int) -> None:
    waiting = local.with_name(f".{os.urandom(8).hex()}.part")
    with waiting.open("wb") as file:
        file.truncate(size)
    waiting.replace(local)


def _use(local: Path, change: int) -> None:
    """Count who uses what is at a place; what nobody uses any more leaves the disk, but for small texts."""
    with _turn:
        for file, away in _files.items():
            if file == local or local in file.parents or local.parent == file.parent:
                away.users = max(0, away.users + change)
                if away.here and not away.users and file.suffix not in TEXTS:
                    with suppress(OSError):
                        _empty(file, away.found.size)
                        away.here = False


@contextmanager
def _made_here(local: Path, address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"it cannot be called so here ({error.strerror or error})"
        raise DataError(f"{address}: {told}; a file and a directory of one name, or a name too long") from error
