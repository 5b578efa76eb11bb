"""Open untrusted HDF5 files; refuse links to other files and false sizes, and report damage in one line."""

import hashlib
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

from ckpt_probe.budget import MEMORY, Budget
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5.lookover import look_over

BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
"""Errors that h5py raises for damaged files; text that is not UTF-8 raises a ValueError."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FIRST_WITH_CHECKSUMS = 2
"""First version of the superblock with checksums for everything except the numbers themselves."""

CLASS_NAMES = "class_names"
SAMPLE_NAMES = "sample_names"
"""Names of the datasets of names of classes and of samples, the only ones that contain texts."""

CHECKPOINTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
"""Suffixes of checkpoints."""

TEXTS = (f"/{CLASS_NAMES}", f"/{SAMPLE_NAMES}")

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
COMPRESSING = frozenset({DEFLATE, LZF})
FILTERS = COMPRESSING | {SHUFFLE, FLETCHER32}
"""Numbers of filters. Others, such as scaleoffset, allocate what their own parameters claim."""
RATIO = 1032
"""Most bytes that deflate makes of one byte."""
CHECKSUM = 4
"""Bytes that fletcher32 adds to a chunk."""
CHUNK_CACHE = 2**20
"""Size in bytes of HDF5's cache of decompressed chunks; a chunk that does not fit is decompressed at each read."""

TEXT = 64
"""Bytes of an object of Python for a text, besides its characters."""

OBJECTS = 64
"""Entries that are counted for a group or dataset, which takes 100 microseconds to look at."""

COUNTED = 64
"""Groups and datasets after which they are counted."""

FOLLOWED = (h5l.TYPE_HARD, h5l.TYPE_SOFT)
"""Kinds of links to objects of the same file."""

DEEPEST = 8
"""Largest depth of nested groups."""

LONGEST_NAME = 1000
"""Largest number of characters of the name of a group or dataset."""

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of `structure_hash`: those written after it, and references to scales, which are not read."""

COUNTED_BYTES = 2**20
"""Bytes of attributes after which they are counted."""

SETTLED_NS = 2 * 10**9
"""Age of a file from which on another write changes its modification time."""

State = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file."""

_largest_chunks: dict[State, int] = {}
"""Size of the largest compressed chunk of files that were checked: a report opens each file several times."""


@contextmanager
def opened(path: Path, *, in_child: bool = False) -> Iterator[h5py.File]:
    """Open a file for reading, within a `with` block.

    Args:
        path: File. If its structure has no checksums, a child process opens it first (`look_over`).
        in_child: Whether this is that process.

    Raises:
        DataError: If the file is missing, a directory, truncated or not HDF5, if the child process did not survive it,
            or as in `_check`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: a directory; expected one file")
    if not path.is_file():
        raise DataError(f"{path}: a pipe, a socket or a device, not a file; copy its contents into a file first")
    local = Path(os.fspath(path))  # a remote file is downloaded
    if not in_child and not _has_checksums(local):
        look_over(path, local, state_of(local.stat()))
    try:
        file = h5py.File(local, "r")
    except BROKEN as error:
        if path.name.endswith(CHECKPOINTS):
            raise DataError(f"{path}: a checkpoint, not a dump; extract it first (ckpt-probe extract)") from error
        raise DataError(f"{path}: not an HDF5 file, or a truncated one ({_first_clause(error)})") from error
    with file:
        state = settled_state(file)
        largest = None if state is None else _largest_chunks.get(state)
        if largest is None:
            with bounded_reads(path) as budget:
                largest = _check(path, file, budget)
            _largest_chunks.update({} if state is None else {state: largest})
        if not CHUNK_CACHE < largest <= MEMORY:
            yield file
            return
    with h5py.File(local, "r", rdcc_nbytes=largest) as file:
        yield file


def _has_checksums(path: Path) -> bool:
    """Return whether superblock and root group are of a version with checksums."""
    with suppress(OSError, OverflowError, ValueError), path.open("rb") as file:
        start = file.read(48)
        if start[:8] != SIGNATURE or len(start) < 48 or start[8] < FIRST_WITH_CHECKSUMS or start[9] != 8:
            return False
        base, root = (int.from_bytes(start[offset : offset + 8], "little") for offset in (12, 36))
        file.seek(base + root)
        return file.read(4) == b"OHDR"
    return False


@contextmanager
def own_reads(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn errors of h5py inside the `with` into DataError; it must not surround code of a caller.

    Args:
        path: File, for the message.
        name: Name of the object that is read, for the message.
    """
    try:
        yield
    except BROKEN as error:
        raise _unreadable(f"{path}: {name}" if name else str(path), error) from error


@contextmanager
def bounded_reads(path: Path) -> Iterator[Budget]:
    """Like `own_reads`, for attributes: a list of texts may lead to one large text many times.

    The memory of the whole process is limited meanwhile (`Budget.enforced`).

    Yields:
        The budget of the file.
    """
    budget = Budget(path, path.stat().st_size)
    try:
        with budget.enforced():
            yield budget
    except BROKEN as error:
        raise _unreadable(str(path), error) from error


def _check(path: Path, file: h5py.File, budget: Budget) -> int:
    """Check that a file refers to no other file, is as large as it claims and within its budget; read no dataset.

    Returns:
        Size in bytes of the largest chunk that is decompressed as a whole; 0 without compression.

    Raises:
        DataError: For external and user-defined links, external raw storage, virtual datasets, unknown filters,
            datasets other than numbers (class names may be texts of one length), shapes larger than the stored bytes,
            and datasets that unpack to more than the budget of the file.
    """
    sizes, largest = {"": 0}, 0
    for name, item in items(file, budget):
        if isinstance(item, h5py.Dataset):
            where = f"{path}: {name.strip('/')}"
            compressed = _require_plain(where, item, "biufS" if name.endswith(TEXTS) else "biuf")
            chunk = math.prod(item.chunks) * item.dtype.itemsize if compressed and item.chunks else 0
            if chunk:
                _require_true_chunks(where, item, chunk, budget)
            texts = TEXT * len(item) if item.dtype.kind == "S" and item.shape else 0
            sizes[name.strip("/")], largest = texts + max(item.nbytes, chunk), max(largest, chunk)
    budget.spend(sum(sizes.values()), cause=f"{max(sizes, key=sizes.__getitem__)}: ")
    return largest


def items(file: h5py.File, budget: Budget | None = None) -> Iterator[tuple[str, Any]]:
    """Yield name and object of every group and dataset once, groups before their members; skip broken links.

    Args:
        file: An open file.
        budget: Budget of a file that is read; a child process has its own limits.
    """
    waiting: list[tuple[str, Any, int]] = [("/", file, 0)]
    seen = set()
    while waiting:
        name, item, depth = waiting.pop()
        address = h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        if budget is not None and len(seen) % COUNTED == 0:
            budget.spend(entries=COUNTED * OBJECTS)
        yield name, item
        if not isinstance(item, h5py.Group):
            continue
        if depth == DEEPEST:
            raise DataError(f"{file.filename}: {name}: groups nested more than {DEEPEST} deep")
        keys: list[Any] = list(item)
        if any(isinstance(key, bytes) or len(key) > LONGEST_NAME for key in keys):
            raise DataError(f"{file.filename}: {name}: a member whose name is no text, or too long; damaged")
        for key in sorted(keys, reverse=True):
            inner = f"{name.rstrip('/')}/{key}"
            if item.id.links.get_info(key.encode(errors="surrogateescape")).type not in FOLLOWED:
                link = item.get(key, getlink=True)
                external = isinstance(link, h5py.ExternalLink)
                kind = f"a link to another file ({link.filename!r})" if external else "a user-defined link"
                raise DataError(f"{file.filename}: {inner.strip('/')}: {kind}, which is not followed")
            member = item.get(key)
            if isinstance(member, h5py.Group | h5py.Dataset):
                waiting.append((inner, member, depth + 1))


def structure_hash(file: h5py.File, budget: Budget | None = None) -> str:
    """Compute the SHA-256 of names, shapes, dtypes and attributes of every group and dataset of a file.

    The numbers in datasets are left out, because HDF5's checksums cover them.

    Args:
        file: An open file.
        budget: Budget of a file that is read: many attributes may lead to one large text.
    """
    digest, size = hashlib.sha256(), 0
    for name, item in list(items(file, budget)):
        parts = [name, *(f"{key}={_text_of(item.attrs[key])}" for key in sorted(set(item.attrs) - UNHASHED))]
        size += sum(map(len, parts))
        if budget is not None and size > COUNTED_BYTES:
            budget.spend(size)
            size = 0
        if isinstance(item, h5py.Dataset):
            parts += [str(item.shape), item.dtype.str]
        digest.update("\0".join(parts).encode(errors="surrogateescape") + b"\1")
    return digest.hexdigest()


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # The bytes of an array of objects are only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"


def state_of(status: os.stat_result) -> State:
    """Return the state of a file, which another write changes unless it follows at once."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def settled_state(file: h5py.File) -> State | None:
    """Return the state of an open file, which another write will change.

    Returns:
        None if the file was written so recently that another write might leave its time unchanged.
    """
    # The state is that of the open file, as another file may have its name by now.
    state = state_of(os.fstat(file.id.get_vfd_handle()))
    return state if time.time_ns() - state[-1] > SETTLED_NS else None


def _require_plain(where: str, dataset: h5py.Dataset, kinds: str) -> bool:
    """Return whether a dataset is compressed; raise DataError as in `_check`."""
    if dataset.is_virtual:
        raise DataError(f"{where}: a virtual dataset, stored in other files; copy its numbers into this file")
    if dataset.external:
        raise DataError(
            f"{where}: stored in another file ({dataset.external[0][0]!r}); copy its numbers into this file"
        )
    if dataset.dtype.kind not in kinds:
        kind = "texts" if h5py.check_string_dtype(dataset.dtype) else dataset.dtype
        wanted = "texts of one length, as of np.array(names, dtype='S')" if "S" in kinds else "numbers"
        raise DataError(f"{where}: contains {kind}, expected {wanted}")
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if unknown := set(filters) - FILTERS:
        raise DataError(f"{where}: stored with the unknown filter {min(unknown)}; write it with gzip, lzf or no filter")
    changing = [number for number in filters if number != FLETCHER32]
    if COMPRESSING & set(changing[:-1]):
        raise DataError(f"{where}: stored with filters after its compression; write it with gzip, lzf or no filter")
    claimed, stored, compressed = dataset.nbytes, dataset.id.get_storage_size(), bool(COMPRESSING & set(filters))
    if not compressed and claimed > stored:
        raise DataError(f"{where}: claims {claimed:,} bytes, but only {stored:,} were ever written")
    return compressed


def _require_true_chunks(where: str, dataset: Any, size: int, budget: Budget) -> None:
    """Raise DataError if a chunk unpacks to more than its size and beyond the budget, as HDF5 allocates all of it.

    Args:
        where: File and name, for the message.
        dataset: A compressed dataset.
        size: Size of a chunk in bytes.
        budget: Budget of the file.
    """
    # Writers leave a chunk that compression does not make smaller as it is; compressed, it is hardly larger.
    most, large = size + size // 100 + 64, []
    suspicious = min(most, budget.memory // RATIO)
    dataset.id.chunk_iter(lambda chunk: large.append(chunk) if chunk.size > suspicious else None)
    for chunk in large:
        unpacked = chunk.size if chunk.size > most else 0
        if not unpacked and dataset.compression == "gzip":
            _, stored = dataset.id.read_direct_chunk(chunk.chunk_offset)
            with suppress(zlib.error):  # which HDF5 reports
                unpacked = len(zlib.decompressobj().decompress(stored, size + CHECKSUM + 1))
        if unpacked > size + CHECKSUM:
            raise DataError(f"{where}: a chunk of {size:,} bytes unpacks to more; damaged, or made to do this")


def groups_with(file: h5py.File, *names: str) -> dict[str, Any]:
    """Return groups that contain all of `names`, by name; the root, which comes first, is named ""."""
    groups = {"": file, **file}
    return {name: item for name, item in groups.items() if isinstance(item, h5py.Group) and set(names) <= set(item)}


def read_names(path: Path, dataset: Any, name: str = CLASS_NAMES) -> tuple[str, ...]:
    """Return the names in a dataset called `name`, stored as texts of one length in UTF-8.

    Raises:
        DataError: If the dataset is something else.
    """
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind != "S":
        raise DataError(f"{path}: {name}: expected a list of texts of fixed length, found {dataset}")
    with own_reads(path, name):
        return tuple(bytes(text).decode("utf-8") for text in dataset[()])


def read_arrays(
    path: Path, name: str, datasets: Mapping[str, Any], part: slice | tuple[()] = ()
) -> dict[str, np.ndarray]:
    """Read datasets by name, or the rows `part` of each, in the byte order of this machine.

    Args:
        path: File, for the message.
        name: Name of the group or the rows, for the message.
        datasets: Datasets by name.
        part: Rows; () for whole datasets.

    Raises:
        DataError: If they cannot be read.
    """
    with own_reads(path, name):
        return {name: native(np.asarray(dataset[part])) for name, dataset in datasets.items()}


def native(values: np.ndarray) -> np.ndarray:
    """Convert numbers to the byte order of this machine, and to float64 if they are wider."""
    # torch accepts neither the other byte order nor numbers wider than float64.
    kind = values.dtype.newbyteorder("=")
    return values.astype(np.float64 if kind.kind == "f" and kind.itemsize > 8 else kind, copy=False)


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(f"{where}: cannot be read and may be damaged: {_first_clause(error)}")


def _first_clause(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
