"""Files that could crash the HDF5 library, or keep it for ever, are opened by a child process first."""

import atexit
import os
import select
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from ckpt_probe.children import start_module
from ckpt_probe.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FIRST_WITH_CHECKSUMS = 2
"""Version of the superblock from which on everything but the numbers themselves has a checksum."""

PROCESSOR_SECONDS = 8
"""Of the child's own time for one file, after which it ends itself."""
WAITED_SECONDS = 180
"""For a file that cannot be read because a disk does not answer."""

_child: tuple[int, subprocess.Popen[bytes]] | None = None
"""The number of the process that it belongs to, which a copy of that one is not, and the child."""
_sound: dict[Path, tuple[int, ...]] = {}
_turn = threading.Lock()


def look_over(path: Path) -> None:
    """Have a file opened and walked through elsewhere, once, where its metadata is under no checksum.

    What is found wrong there is not told: whoever opens it next finds the same, and says so. Raises DataError where the
    library crashed, took more than `PROCESSOR_SECONDS` or more memory than the child may have.
    """
    try:
        found = path.stat()
        if _has_checksums(path):
            return
    except OSError:
        return
    now = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    with _turn:
        if _sound.get(path) == now:
            return
        _ask(path)
        _sound[path] = now


def _has_checksums(path: Path) -> bool:
    """Whether the superblock is of a version with checksums, and the root group too."""
    with path.open("rb") as file:
        start = file.read(48)
        if start[:8] != SIGNATURE or len(start) < 48 or start[8] < FIRST_WITH_CHECKSUMS or start[9] != 8:
            return False
        base, root = (int.from_bytes(start[place : place + 8], "little") for place in (12, 36))
        with suppress(OSError, OverflowError, ValueError):
            file.seek(base + root)
            return file.read(4) == b"OHDR"
        return False


def _ask(path: Path) -> None:
    child = _running()
    told = "it is damaged, or was made for this; get it again from its source"
    try:
        assert child.stdin is not None
        child.stdin.write(os.fsencode(path.absolute()).hex().encode() + b"\n")
        child.stdin.flush()
        answered, _, _ = select.select([child.stdout], [], [], WAITED_SECONDS)
        alive = bool(answered) and bool(child.stdout and child.stdout.readline())
    except BrokenPipeError:
        answered, alive = True, False
    if alive:
        return
    _end()
    if not answered:
        raise DataError(f"{path}: reading its structure took longer than {WAITED_SECONDS} seconds; {told}")
    if child.returncode == -getattr(signal, "SIGXCPU", 0):
        raise DataError(f"{path}: the HDF5 library came to no end within {PROCESSOR_SECONDS} seconds; {told}")
    raise DataError(f"{path}: the HDF5 library crashed on it ({_how(child.returncode)}); {told}")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _running() -> subprocess.Popen[bytes]:
    global _child
    if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        child = start_module("ckpt_probe.hdf5.child", str(PROCESSOR_SECONDS), variables=threads)
        _child = os.getpid(), child
        atexit.register(_end)
    return _child[1]


def _end() -> None:
    global _child
    if _child is not None and _child[0] == os.getpid():
        process = _child[1]
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()
        # It ends by itself when nothing more can come, but not where it hangs.
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        process.wait()
    _child = None
