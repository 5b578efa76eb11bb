"""Atomic writing of files and directories, hashes, and checks of input and output paths."""

import hashlib
import os
import platform
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ckpt_probe.addresses import local_path, refuse_address
from ckpt_probe.budget import Budget, require_regular
from ckpt_probe.errors import DataError, UsageError

ABANDONED_SECONDS = 86_400.0
"""Age after which a temporary file of another machine is considered abandoned."""
RENAMING_SECONDS = 60.0
"""Age after which a directory that another machine moved aside is restored; its replacement takes milliseconds."""

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""Signals of Ctrl-C, of a system that ends the process, and of a closed terminal."""

_in_use: set[Path] = set()
"""Temporary files of this process."""

PACKAGE = Path(__file__).parent
DISPLAY_PACKAGES = frozenset({"cli", "reporting"})
"""Subpackages that display results and do not affect stored numbers."""


@contextmanager
def replacing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, else remove it.

    A process that is killed at any moment leaves either the old file or the new one.

    Raises:
        UsageError: If `path` exists and `overwrite` is false.
        DataError: If it cannot be written.
    """
    path = Path(path)
    _require_name(path)
    refuse_existing(path, overwrite=overwrite)
    temporary = _temporary_name(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path, "part")
        # A link or file that another user has put there is not followed or written.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in {path, temporary, *path.parents}:
            raise
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        _release(temporary)


@contextmanager
def replacing_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success fsync its files and rename it to `path`, else remove it.

    An existing directory is renamed to a hidden name that ends in `.old`, and removed once the new one is in its place.
    After an error between these two renames it is restored at once; after a kill the next call restores it first.

    Raises:
        UsageError: If `path` exists and `overwrite` is false.
        DataError: If it cannot be written.
    """
    path = Path(path)
    _require_name(path)
    temporary, old = _temporary_name(path, "part"), _temporary_name(path, "old")
    try:
        _recover(path)
        refuse_existing(path, overwrite=overwrite, directory=True)
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
        _in_use.discard(old)
        _release(temporary)


@contextmanager
def parts_of(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path` for the parts of a file; it is removed at the end.

    Directories of ended processes are removed first.

    Raises:
        DataError: If the directory cannot be created.
    """
    folder = _temporary_name(path, "parts")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path, "parts")
        folder.mkdir()
    except OSError as error:
        raise DataError(f"{folder}: cannot be created: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        _release(folder)


@contextmanager
def interrupts_delayed() -> Iterator[None]:
    """Delay Ctrl-C and other signals that may raise an exception until the end of the `with`; usable as a decorator.

    HDF5 crashes the process if an exception is raised in a function that it calls.
    """
    handlers: dict[int, Any] = {
        number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))
    }
    if threading.current_thread() is not threading.main_thread() or not handlers:
        yield
        return
    arrived: list[tuple[int, Any]] = []
    for number in handlers:
        signal.signal(number, lambda *signal_and_frame: arrived.append(signal_and_frame))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in arrived[:1]:
            handlers[number](number, frame)


def remove_temporary_files() -> None:
    """Remove the temporary files of this process, which is about to end at once."""
    for path in [path for path in _in_use if path.suffix != ".old"]:
        _remove(path)


@contextmanager
def temporary(path: Path) -> Iterator[None]:
    """Count a file as temporary for the duration of the `with`; its writer removes it."""
    _in_use.add(path)
    try:
        yield
    finally:
        _in_use.discard(path)


def refuse_existing(path: Path, *, overwrite: bool, directory: bool = False) -> None:
    """Check that an output can be written; call this before the computation of its contents.

    Args:
        path: Path of the output.
        overwrite: Whether to replace an existing output.
        directory: Whether the output is a directory.

    Raises:
        UsageError: If `path` exists and may not be overwritten, is a directory in place of a file, a device, a pipe or
            a socket, or is an address.
        DataError: If the directory of the output cannot be written to.
    """
    refuse_address(path)
    if not directory and Path(path).is_dir():
        raise UsageError(f"{path}: a directory; expected the name of a file to write")
    # A user with all rights would rename the output over /dev/null, or over the link /dev/stdout.
    special = Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir())
    if special or Path(path).absolute().parent == Path("/dev"):
        raise UsageError(f"{path}: a device, a pipe or a socket, which is not replaced; name a file to write")
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path}: exists already; add `overwrite=True` to replace it, or choose another name")
    folder = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise DataError(f"{path}: cannot be written: {folder} is not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{path}: cannot be written: Permission denied in {folder}")


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a text (UTF-8) to a file atomically."""
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each path: the fewest last parts that are distinct for all paths."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0)):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in paths]


def read_object(path: Path, description: str) -> dict[str, Any]:
    """Read the JSON object in an untrusted file.

    Args:
        path: Path of the file.
        description: What the file should be, for the message of the error.

    Raises:
        DataError: If the file cannot be read, is beyond its budget, or does not contain a JSON object.
    """
    try:
        require_regular(path)
        budget = Budget(path)
        budget.spend(path.stat().st_size)
        value = budget.parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not {description} ({error})") from error
    return value


def code_hash(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the names and contents of all modules of a package that may affect stored numbers."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package)
        if name.parts[0] not in DISPLAY_PACKAGES:
            code = file.read_bytes()
            digest.update(f"{name.as_posix()} {len(code)}\n".encode() + code)
    return digest.hexdigest()


def content_hash(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file; raise DataError if it cannot be read."""
    require_regular(path)
    try:
        with local_path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


Stamp = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of the last change in nanoseconds, of each file."""


def stamp_of(path: Path | str) -> Stamp:
    """Return names, sizes and times of a file, or of all files below a directory, to detect changes.

    Hidden files and directories are skipped: they are temporary files and caches. The stamp of a missing file is ().
    """
    path = Path(path)
    below = (file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path)))
    return tuple(stamp for file in (below if path.is_dir() else [path]) if (stamp := _stamp(file)) is not None)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".metadata" for part in path.parts)


def _stamp(file: Path) -> tuple[str, int, int] | None:
    try:
        status = file.stat()
    except OSError:  # removed after it was listed
        return None
    return (str(file), status.st_size, status.st_mtime_ns) if not file.is_dir() else None


@cache
def machine_id() -> str:
    """Return 16 hexadecimal digits of the set of processes whose numbers this process can look up.

    It is a hash of the full host name, the boot and the namespace of process numbers: two containers differ in it even
    if their names are equal, and so does a machine from itself before a restart.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _release(temporary: Path) -> None:
    _remove(temporary)
    _in_use.discard(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    # If the directory could not be created or entered there is nothing to remove; the first error is raised.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _require_name(path: Path) -> None:
    if path.name in {"", ".."}:
        raise UsageError(f"{path}: not a valid name for an output file or directory")


def _put_back(old: Path, path: Path) -> None:
    """Rename the old directory back if `path` does not exist, else remove it."""
    if os.path.lexists(path):
        _remove(old)
        return
    with suppress(OSError):  # there is no old directory, or the next call restores it
        old.rename(path)


def _recover(path: Path) -> None:
    """Restore a directory that an ended process had moved aside, and remove its temporary directories."""
    if not path.parent.is_dir():
        return
    for left in _abandoned(path, "old"):
        _put_back(left, path)
    _remove_abandoned(path, "part")


def _remove_abandoned(path: Path, kind: str) -> None:
    for left in _abandoned(path, kind):
        _remove(left)


def _temporary_name(path: Path, kind: str) -> Path:
    """Return `.NAME.MACHINE-PROCESS-RANDOM.KIND` beside `path`, which nobody else uses or can predict."""
    temporary = path.with_name(f".{path.name}.{machine_id()}-{os.getpid()}-{secrets.token_hex(8)}.{kind}")
    _in_use.add(temporary)
    return temporary


def _abandoned(path: Path, kind: str) -> list[Path]:
    """Return temporary files of `path` whose process has ended; those of other machines count by their age."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\w+)-(\d+)(?:-[0-9a-f]{{16}})?\.{kind}")
    abandoned = []
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match is None:
            continue
        machine, process = match[1], int(match[2])
        if machine == machine_id():
            ours = any(entry.name == each.name for each in _in_use)
            ended = not ours if process == os.getpid() else not is_alive(process)
        else:
            ended = _age(entry) > (RENAMING_SECONDS if kind == "old" else ABANDONED_SECONDS)
        if ended:
            abandoned.append(entry)
    return abandoned


def _age(entry: Path) -> float:
    """Return the seconds since a file, or the newest file below a directory, was written or renamed."""
    changes = [0.0]
    for file in (entry, *entry.rglob("*")):
        with suppress(OSError):
            changes.append(file.lstat().st_ctime)
    return time.time() - max(changes)


def is_alive(process: int) -> bool:
    """Return whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
