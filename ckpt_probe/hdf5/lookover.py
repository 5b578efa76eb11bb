"""Open files that could crash or hang the HDF5 library in a child process first."""

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

PROCESSOR_SECONDS = 8
"""Processor time for one file after which the child ends itself."""
WAITED_SECONDS = 180
"""Longest wait for an answer, in case a disk does not respond."""

_child: tuple[int, subprocess.Popen[bytes]] | None = None
"""The child, and the id of the process that started it (a forked copy must start a child of its own)."""
_survived: set[tuple[int, ...]] = set()
_turn = threading.Lock()


def look_over(path: Path, local: Path, state: tuple[int, ...]) -> None:
    """Have the child walk through a file, once for each state of it.

    Other errors are not reported here, because opening the file afterwards raises them again.

    Args:
        path: File, for messages.
        local: The file on this machine.
        state: State of the file.

    Raises:
        DataError: If the library crashed, or needed more than `PROCESSOR_SECONDS` or more memory than allowed.
    """
    with _turn:
        if state not in _survived:
            _ask(path, local)
            _survived.add(state)


def _ask(path: Path, local: Path) -> None:
    child = _running()
    advice = "it is damaged, or was made to do this; get it again from its source"
    try:
        assert child.stdin is not None
        child.stdin.write(os.fsencode(local.absolute()).hex().encode() + b"\n")
        child.stdin.flush()
        answered, _, _ = select.select([child.stdout], [], [], WAITED_SECONDS)
        alive = bool(answered) and bool(child.stdout and child.stdout.readline())
    except BrokenPipeError:
        answered, alive = True, False
    if alive:
        return
    _end()
    if not answered:
        raise DataError(f"{path}: reading its structure took longer than {WAITED_SECONDS} seconds; {advice}")
    if child.returncode == -getattr(signal, "SIGXCPU", 0):
        raise DataError(f"{path}: the HDF5 library came to no end within {PROCESSOR_SECONDS} seconds; {advice}")
    cause = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    raise DataError(f"{path}: the HDF5 library crashed on it ({cause}); {advice}")


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
        # It ends by itself when its input is closed, unless it hangs.
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        process.wait()
    _child = None
