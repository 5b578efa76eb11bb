"""Claim output files, so that several processes that share a directory do not write the same one.

A claim on NAME is a file beside it, `.NAME.claim-1`, created exclusively, which needs no locks. Its holder touches it
every few seconds. If it has not been touched for a while, or its process on this machine has ended, another process
takes over by creating `.NAME.claim-2`, which again only one process can; the highest number counts. Each observer
measures time with its own clock: a claim is stale if the observer has seen no change for `STALE_SECONDS`, whatever the
clocks of other machines show.
"""

import json
import os
import re
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep

from ckpt_probe.errors import DataError
from ckpt_probe.files import is_alive, machine_id, temporary
from ckpt_probe.scheduling.tasks import Busy

BEAT_SECONDS = 5.0
PAUSE_SECONDS = 0.5
STALE_SECONDS = 60.0
"""Seconds without a change after which the holder of a claim is considered dead."""

_CLAIM = re.compile(r"\.(.+)\.claim-(\d+)")
_seen: dict[Path, tuple[tuple[int, int, str], float]] = {}
"""State of each claim of another process when last read, and the time since when it has been in that state."""


class UnclaimedError(DataError):
    """Raised if a claim cannot be created because its directory is not writable."""


@dataclass(frozen=True)
class _Holder:
    """The process that holds a claim; earlier versions wrote no `machine`."""

    host: str
    process: int
    token: str
    machine: str = ""

    def has_ended(self) -> bool:
        """Return whether the process ran on this machine and has ended."""
        here = self.machine == machine_id() if self.machine else self.host == socket.gethostname()
        return here and not is_alive(self.process)


@contextmanager
def claimed(path: Path) -> Iterator[Busy | None]:
    """Claim `path` for the duration of the `with`.

    Another process may have finished the file just before: check for it again once the claim is yours.

    Args:
        path: File that is going to be written.

    Yields:
        None, or `Busy` if another process has a claim.

    Raises:
        UnclaimedError: If the directory is not writable.
    """
    path = Path(path)
    claim = _claim(path)
    if isinstance(claim, Busy):
        yield claim
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(claim, ended), name="claim", daemon=True)
    try:
        beating.start()
        with temporary(claim):
            yield None
    finally:
        ended.set()
        if beating.is_alive():
            beating.join()
        _release(path, claim)


@contextmanager
def claimed_in_turn(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Claim `path` for the duration of the `with`, waiting until the current holder releases it.

    Args:
        path: File that is going to be written.
        say: Function that shows one message if there is a wait.

    Yields:
        Whether there was a wait.

    Raises:
        UnclaimedError: If the directory is not writable.
    """
    waited = False
    while True:
        with claimed(path) as busy:
            if busy is None:
                yield waited
                return
        if not waited:
            say(f"{path}: {busy.holder} is working on it; waiting")
            waited = True
        sleep(PAUSE_SECONDS)


def remove_abandoned(folder: Path) -> None:
    """Remove claims of dead processes of this machine on files of a directory that exist.

    Such a process ended after its file was complete, so that no other process will take the claim over.
    """
    for name in _names(folder):
        if (match := _CLAIM.fullmatch(name)) and (folder / match[1]).exists():
            with suppress(OSError):
                holder = _parse(_contents(folder / name)[1])
                if holder is not None and holder.has_ended():
                    (folder / name).unlink()


def _claim(path: Path) -> Path | Busy:
    """Create the file of a claim, or return `Busy`."""
    numbers = _numbers(path)
    if numbers:
        holder = _live_holder(_file(path, numbers[-1]))
        if holder is not None:
            return Busy(holder)
    file = _file(path, numbers[-1] + 1 if numbers else 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("x", encoding="utf-8") as written:
                ours = _Holder(socket.gethostname(), os.getpid(), secrets.token_hex(8), machine_id())
                written.write(json.dumps(asdict(ours)))
        except FileExistsError:
            return Busy("another process")
    except OSError as error:
        raise UnclaimedError(f"{path}: cannot be written: {error.strerror or error}") from error
    return file


def _live_holder(file: Path) -> str | None:
    """Return a description of the process that holds a claim; None if it is dead or has just released it."""
    try:
        state, text = _contents(file)
    except OSError:
        return None if not file.exists() else "another process"
    if not stat.S_ISREG(state.st_mode):
        return None
    # An empty file was created but not written yet, perhaps by a process that died in between.
    holder = _parse(text)
    if holder is not None and holder.has_ended():
        return None
    current, now = (state.st_mtime_ns, state.st_size, holder.token if holder else text), monotonic()
    before, since = _seen.get(file, (current, now))
    if before != current:
        since = now
    _seen[file] = (current, since)
    if now - since >= STALE_SECONDS:
        return None
    return f"process {holder.process} of {holder.host}" if holder else "another process"


def _contents(file: Path) -> tuple[os.stat_result, str]:
    """Return the status and the text of a claim; a pipe in its place is not waited for, and has no text."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as opened:
        state = os.fstat(descriptor)
        content = opened.read(4096) if stat.S_ISREG(state.st_mode) else b""
    return state, content.decode(errors="replace")


def _parse(text: str) -> "_Holder | None":
    try:
        holder = json.loads(text)
        names = (str(holder["host"]), int(holder["process"]), str(holder["token"]), str(holder.get("machine", "")))
        return _Holder(*names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _release(path: Path, claim: Path) -> None:
    # The claim of this process last: as long as it exists, no lower number counts.
    ours = int(claim.name.rpartition("-")[2])
    for file in [*(_file(path, number) for number in _numbers(path) if number < ours), claim]:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        _seen.pop(file, None)


def _beat(claim: Path, ended: threading.Event) -> None:
    """Touch the file of a claim every few seconds to show that its holder is alive."""
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(claim)


def _numbers(path: Path) -> list[int]:
    matches = [_CLAIM.fullmatch(name) for name in _names(path.parent)]
    return sorted(int(match[2]) for match in matches if match and match[1] == path.name)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if ".claim-" in entry.name]
    except OSError:
        return []


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.claim-{number}")
