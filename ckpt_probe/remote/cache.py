"""Local copies of remote files, in one directory of the cache for each version of a file or directory."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from ckpt_probe.errors import DataError
from ckpt_probe.files import replacing, replacing_directory
from ckpt_probe.remote.failures import CHANGED
from ckpt_probe.remote.hosts import Entry, file_system, look_up, request, scheme_of
from ckpt_probe.user_cache import private_cache

FILES = "files"
"""Subdirectory of the cache."""


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


def _download(entries: Sequence[Entry], files: Sequence[Path]) -> None:
    if not entries:
        return
    addresses = [entry.address for entry in entries]
    host = file_system(addresses[0])
    if len(entries) == 1:
        request(addresses[0], lambda: host.get_file(addresses[0], str(files[0])), _total(entries))
    else:
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
