"""Paths of remote files, with the methods of `pathlib.Path` that read."""

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

from ckpt_probe.addresses import Address, is_address, without_secrets
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.files import replacing, replacing_directory
from ckpt_probe.plugins import TEXT_SUFFIXES
from ckpt_probe.remote.failures import CHANGED
from ckpt_probe.remote.hosts import WEB, Entry, RangeFile, file_system, list_directory, look_up, request, scheme_of
from ckpt_probe.user_cache import private_cache

DEEPEST = 12
"""Largest depth of nested directories that are downloaded."""
LARGEST_TEXT = 64 * 2**20
DATA_KINDS = frozenset({"idx", "npz", "h5", "text", "imagefolder", "hf-dataset", "csv", "parquet"})
"""Kinds of data that are files."""

_roots: set[str] = set()
"""Addresses that the caller has named, for which a failure is an error; files beside them may be absent."""
_entries: dict[str, Entry] = {}
_listings: dict[str, list[str]] = {}
"""Addresses of the entries of each directory that was listed."""

SHARD = re.compile(r"\d[-_]of[-_]\d+\.\w+$")
"""End of the name of a shard of a model."""
FILES = "files"
"""Subdirectory of the cache."""


class RemotePath(Address):
    """A remote file or directory.

    `open` reads by ranges. `os.fspath`, and so every function that takes a path, downloads the file or directory into
    the cache and returns the local copy. `str` is the address without credentials.

    Information about files is requested once, and again after the next `resolve`.
    """

    def __fspath__(self) -> str:
        entry = self._require_entry()
        if entry.directory:
            return str(download_directory(entry.address, _files_below(self)))
        return str(download_file(_with_size(entry)))

    def __reduce__(self) -> tuple[Any, ...]:
        root = next((root for root in (str(self), *map(str, self.parents)) if root in _roots), str(self))
        return _restored, (str(self), root)

    def open(self, mode: str = "r", buffering: int = -1, encoding: str | None = None, *_: Any, **__: Any) -> Any:
        """Open the file for reading; with `buffering=0` no more bytes are requested than are read."""
        entry = _with_size(self._require_entry())
        copy = cached_copy(entry) if entry.ranges else download_file(entry)
        if copy is not None:
            return copy.open(mode, encoding=encoding)
        file = RangeFile(
            entry,
            read_ahead=buffering != 0,
            cached_copy=lambda: cached_copy(entry),
            download=lambda: download_file(entry),
        )
        return file if "b" in mode else io.TextIOWrapper(io.BufferedReader(file), encoding=encoding)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Return the contents of a text file."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return type and size; the times are 0."""
        entry = self._require_entry()
        if entry.directory:
            return os.stat_result((stat.S_IFDIR | 0o555, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, _with_size(entry).size or 0, 0, 0, 0))

    def exists(self, **_: Any) -> bool:
        """Return whether there is a file or directory."""
        return _entry(str(self)) is not None

    def is_file(self, **_: Any) -> bool:
        """Return whether there is a file."""
        entry = _entry(str(self))
        if entry is not None and not entry.directory and entry.size is None:
            # A web page may link to another page.
            with suppress(DataError):
                entry = _with_size(entry)
        return entry is not None and not entry.directory

    def is_dir(self, **_: Any) -> bool:
        """Return whether there is a directory."""
        entry = _entry(str(self))
        return entry is not None and entry.directory

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yield the files and directories in a directory."""
        self._require_entry()
        for name in _names_in(str(self)):
            yield RemotePath(name)

    def absolute(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Return the path itself."""
        return self

    def _require_entry(self) -> Entry:
        entry = _entry(str(self))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(self))
        return entry


@overload
def resolve(path: Path | str) -> Path: ...


@overload
def resolve(path: None) -> None: ...


def resolve(path: Path | str | None) -> Path | None:
    """Return the path by which a file is read: a `RemotePath` for an address, else the local path.

    None is returned as it is. Public functions call this for every path that they are passed, so that nothing below
    them knows addresses.

    Raises:
        DataError: If there is nothing at the address, or its host cannot be reached.
        UsageError: If the extra `remote` is not installed, or the address contains credentials that belong elsewhere.
    """
    if path is None or not is_address(path):
        return path if path is None else Path(path)
    address = without_secrets(str(path))
    if any(part in {"", ".", ".."} or "\0" in part for part in address.partition("://")[2].split("/")):
        raise DataError(f"{address}: not the address of a file or directory")
    remote = _restored(address, address)
    remote.exists()  # raises an error if there is nothing
    return remote


def local_texts(directory: Path) -> Path:
    """Return a local directory with the small text files of a remote one, such as a configuration and a tokenizer.

    The local directory above it has those of the remote directory above.

    Args:
        directory: The directory; a local one is returned as it is.
    """
    if not isinstance(directory, RemotePath):
        return directory
    texts, above = _texts_in(str(directory)), _texts_in(_parent(str(directory)))
    if not above:
        return download_directory(str(directory), texts)
    return download_directory(_parent(str(directory)), [*above, *texts]) / directory.name


def local_data(name: str) -> AbstractContextManager[str]:
    """Download the files of data at an address; yield the name of the data with the path of the local copy.

    Errors within the context state the address instead of that path. Other names are yielded as they are.
    """
    kind, _, address = name.partition(":")
    return _downloaded(kind, resolve(address)) if kind in DATA_KINDS and is_address(address) else nullcontext(name)


@contextmanager
def _downloaded(kind: str, path: Path) -> Iterator[str]:
    copy = os.fspath(path)
    try:
        yield f"{kind}:{copy}"
    except CkptProbeError as error:
        raise type(error)(str(error).replace(copy, str(path))) from error


def cached_copy(entry: Entry) -> Path | None:
    """Return the local copy of a file if it was downloaded before and the file has not changed, else None."""
    try:
        copy = _copy_path(entry)
        return copy if entry.validator and copy.stat().st_size == entry.size else None
    except (OSError, DataError):
        return None


def download_file(entry: Entry) -> Path:
    """Return the local copy of a file; download it first if the cache does not have it.

    Files of the Hugging Face Hub are downloaded into huggingface_hub's own cache.

    Raises:
        DataError: If it changes while it is downloaded, cannot be downloaded, or the cache cannot be written.
    """
    if scheme_of(entry.address) == "hf":
        return _from_hub(entry.address, None, entry.size or 0)
    copy = cached_copy(entry)
    if copy is not None:
        return copy
    copy = _copy_path(entry)
    with replacing(copy, overwrite=True) as temporary:
        _download([entry], [temporary])
    return copy


def download_directory(address: str, entries: Sequence[Entry]) -> Path:
    """Return a local directory with files below a remote one; download them unless the cache has these versions.

    Args:
        address: Address of the directory.
        entries: The files, which have addresses below it.

    Raises:
        DataError: As `download_file`.
    """
    names = [entry.address.removeprefix(f"{address}/") for entry in entries]
    if scheme_of(address) == "hf":
        return _from_hub(address, names, _total(entries))
    versions = [[name, entry.size, entry.validator] for name, entry in zip(names, entries, strict=True)]
    copy = _path_in_cache([address, versions], address)
    if copy.is_dir() and all(entry.validator for entry in entries):
        return copy
    with replacing_directory(copy, overwrite=True) as temporary:
        files = [temporary / name for name in names]
        for directory in {file.parent for file in files}:
            directory.mkdir(parents=True, exist_ok=True)
        _download(entries, files)
    return copy


def _restored(address: str, root: str) -> RemotePath:
    """Return a path, of a file or directory at or below `root`, about which nothing is known yet."""
    for name in (address, *_listings.pop(_parent(address), [])):
        _entries.pop(name, None)
    for known in (_entries, _listings):
        for name in [name for name in known if name == address or name.startswith(f"{address}/")]:
            del known[name]
    _roots.add(root)
    return RemotePath(address)


def _entry(address: str) -> Entry | None:
    if address not in _entries and address in _roots:
        _entries[address] = look_up(address)
    if address not in _entries:
        _names_in(_parent(address))
    indices = [root for root in _roots if root.endswith(".index.json")]
    if address not in _entries and SHARD.search(address) and _parent(address) in map(_parent, indices):
        _entries[address] = look_up(address)  # few web servers list the directory of an index
    return _entries.get(address)


def _names_in(directory: str) -> list[str]:
    if directory not in _listings:
        listed = _list(directory)
        for entry in listed:
            _entries.setdefault(entry.address, entry)
        _listings[directory] = [entry.address for entry in listed]
    return _listings[directory]


def _list(directory: str) -> list[Entry]:
    if any(directory == root or directory.startswith(f"{root}/") for root in _roots):
        entry = _entry(directory)
        return list_directory(directory) if entry is not None and entry.directory else []
    # The directory of a file that the caller has named. Few web servers list it, and others may deny it.
    if scheme_of(directory) not in WEB and not directory.endswith(":/"):
        with suppress(DataError):
            return list_directory(directory)
    return []


def _texts_in(directory: str) -> list[Entry]:
    texts = [_entries[name] for name in _names_in(directory) if Path(name).suffix in TEXT_SUFFIXES]
    files = [_with_size(entry) for entry in texts if not entry.directory]
    return [entry for entry in files if (entry.size or 0) <= LARGEST_TEXT]


def _parent(address: str) -> str:
    return address.rpartition("/")[0]


def _with_size(entry: Entry) -> Entry:
    if entry.size is None and not entry.directory:
        entry = _entries[entry.address] = look_up(entry.address)
    return entry


def _files_below(directory: RemotePath, depth: int = 0) -> list[Entry]:
    if depth > DEEPEST:
        raise DataError(f"{directory}: directories nested more than {DEEPEST} deep; name one further down")
    files: list[Entry] = []
    for path in directory.iterdir():
        if path.is_dir():
            files += _files_below(path, depth + 1)
        elif path.is_file():
            files.append(_with_size(_entries[str(path)]))
    return files


def _download(entries: Sequence[Entry], files: Sequence[Path]) -> None:
    if not entries:
        return
    addresses = [entry.address for entry in entries]
    host = file_system(addresses[0])
    request(addresses[0], lambda: host.get(addresses, [str(file) for file in files]), _total(entries))
    for entry, file in zip(entries, files, strict=True):
        size = file.stat().st_size
        if size != entry.size:
            raise DataError(f"{entry.address}: received {size:,} bytes instead of {entry.size:,}; {CHANGED}")
    if len(entries) == 1 and look_up(addresses[0]) != entries[0]:
        raise DataError(f"{addresses[0]}: changed while it was downloaded; {CHANGED}")


def _total(entries: Sequence[Entry]) -> int:
    return sum(entry.size or 0 for entry in entries)


def _from_hub(address: str, names: Sequence[str] | None, size: int) -> Path:
    """Return a file, or a directory with the files `names`, of `size` bytes, in huggingface_hub's cache."""
    import huggingface_hub

    where = request(address, lambda: file_system(address).resolve_path(address))
    repository = {"repo_id": where.repo_id, "repo_type": where.repo_type, "revision": where.revision}
    inside = where.path_in_repo
    if names is None:
        return Path(request(address, lambda: huggingface_hub.hf_hub_download(filename=inside, **repository), size))
    patterns = [f"{inside}/{name}" if inside else name for name in names]
    folder = request(address, lambda: huggingface_hub.snapshot_download(allow_patterns=patterns, **repository), size)
    return Path(folder) / inside


def _copy_path(entry: Entry) -> Path:
    return _path_in_cache([entry.address, entry.size, entry.validator], entry.address)


def _path_in_cache(version: object, address: str) -> Path:
    key = sha256(json.dumps(version).encode()).hexdigest()[:32]
    # The name is kept, since some files are recognised by it.
    return private_cache(FILES) / key / address.partition("?")[0].rpartition("/")[2]
