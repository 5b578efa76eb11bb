"""Writing files so that a kill at any moment leaves the old file or the new one, never half of one."""

import hashlib
import json
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import refuse_address
from ckpt_probe.errors import DataError, UsageError

LARGEST_OBJECT = 256 * 2**20
"""Bytes of a JSON file that are read at once."""

PACKAGE = Path(__file__).parent
SHOWING = frozenset({"cli", "report"})
"""Parts of the package that show numbers and compute none that is stored."""


@contextmanager
def replacing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, else remove it.

    Raises `UsageError` where `path` exists and `overwrite` is false, `DataError` where it cannot be written.
    """
    path = Path(path)
    _require_name(path)
    refuse_existing(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{host_name()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in {path, temporary, *path.parents}:
            raise
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        _remove(temporary)


@contextmanager
def replacing_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success fsync its files and rename it to `path`, else remove it.

    An existing directory is moved aside and removed once the new one has its name: a kill between these two renames
    leaves it whole as `.NAME.HOST-PROCESS.old`, and the next call puts it back first. Where anything else comes
    between them it is put back at once. Errors as `replacing`.
    """
    path = Path(path)
    _require_name(path)
    temporary = path.with_name(f".{path.name}.{host_name()}-{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{host_name()}-{os.getpid()}.old")
    try:
        _recover(path, temporary, old)
        refuse_existing(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if os.path.lexists(path):
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        ours = {path, temporary, *path.parents}
        if error.filename is not None and not ours & {Path(error.filename), Path(error.filename).parent}:
            raise
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        _put_back(old, path)
        _remove(temporary)


@contextmanager
def parts_of(path: Path) -> Iterator[Path]:
    """A directory beside `path` for what it is put together from, of this process alone, and gone at the end.

    What a process left that was killed is removed first. Raises DataError where it cannot be made.
    """
    folder = path.with_name(f".{path.name}.{host_name()}-{os.getpid()}.parts")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in (folder, *_abandoned(path, "parts")):
            _remove(left)
        folder.mkdir()
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        _remove(folder)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` where `path` exists and may not be overwritten, or is no local one."""
    refuse_address(path)
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path}: exists already; pass --overwrite to replace it, or choose another name")


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write `text` (UTF-8) to `path` as a whole or not at all."""
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each path: the fewest of its last parts that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0)):
        names = ["/".join(of_path[-depth:]) for of_path in parts]
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in paths]


def require_regular(path: Path | str) -> None:
    """Raise DataError where a pipe, a socket or a device has the name of a file: reading it may wait for ever.

    What is not there at all is for whoever opens it to tell; what a shell itself passes (`<(…)`) has a writer.
    """
    if str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        return
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: a pipe, a socket or a device, not a file; copy its contents into a file first")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file of anybody's. Raises DataError, saying that it is not `what`, for anything else."""
    try:
        require_regular(path)
        if path.stat().st_size > LARGEST_OBJECT:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not {what} ({error})") from error
    return found


def code_hash(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the names and contents of all modules of a package that numbers may depend on."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        if name.parts[0] not in SHOWING:
            code = file.read_bytes()
            digest.update(f"{name.as_posix()} {len(code)}\n".encode() + code)
    return digest.hexdigest()


def content_hash(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal, read in blocks. Raises DataError where it cannot be read."""
    require_regular(path)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


Stamp = tuple[tuple[str, int, int], ...]
"""Of files: name, size and time of the last change."""


def stamp_of(path: Path | str) -> Stamp:
    """By which a later look tells whether a file has changed, or anything visible below a directory; () where none is.

    Hidden files and directories do not count: they are what is being written, or kept beside results.
    """
    path = Path(path)
    below = (file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path)))
    return tuple(found for file in (below if path.is_dir() else [path]) if (found := _stamp(file)) is not None)


def _hidden(place: Path) -> bool:
    return any(part.startswith(".") and part != ".metadata" for part in place.parts)


def _stamp(file: Path) -> tuple[str, int, int] | None:
    try:
        told = file.stat()
    except OSError:  # gone since it was listed
        return None
    return (str(file), told.st_size, told.st_mtime_ns) if not file.is_dir() else None


def host_name() -> str:
    """This machine's name, in letters and digits."""
    return re.sub(r"\W", "", platform.node())[:32] or "host"


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
        return
    # Where the directory itself could not be made or entered there is nothing to remove, and the first error counts.
    with suppress(OSError):
        left.unlink(missing_ok=True)


def _require_name(path: Path) -> None:
    if path.name in {"", ".."}:
        raise UsageError(f"{path}: not a valid name for an output file or directory")


def _put_back(old: Path, path: Path) -> None:
    """Give what was moved aside its name again where nothing has it; else remove it."""
    if os.path.lexists(path):
        _remove(old)
        return
    with suppress(OSError):  # nothing was moved aside, or it stays for the next call
        old.rename(path)


def _recover(path: Path, temporary: Path, old: Path) -> None:
    """Put back a directory that was moved aside by a process that then died, and remove what else it left."""
    if not path.parent.is_dir():
        return
    # What has this process's own number is of an earlier one: this one has not begun.
    for left in (old, *_abandoned(path, "old")):
        _put_back(left, path)
    for left in (temporary, *_abandoned(path, "part")):
        _remove(left)


def _remove_abandoned(path: Path) -> None:
    for left in _abandoned(path, "part"):
        _remove(left)


def _abandoned(path: Path, kind: str) -> list[Path]:
    # A process killed with -9 leaves what is temporary; its number in the name tells that nobody writes it now.
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(host_name())}-(\d+)\.{kind}")
    matches = [(entry, pattern.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    return [entry for entry, match in matches if match and not is_alive(int(match[1]))]


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
