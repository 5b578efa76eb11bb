"""Claims: which of several processes, on one machine or many that share a directory, is at which file.

A claim on NAME is a file beside it, `.NAME.claim-1`, made exclusively, which needs no locks; its holder touches it
every few seconds. One that nobody has touched for a while, or whose process on this machine is gone, is taken over by
making `.NAME.claim-2`, which again only one process can; the highest number counts. Time is that of the observer: a
claim is stale where he has seen no change for so long, whatever clocks of other machines say.
"""

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from ckpt_probe.errors import DataError
from ckpt_probe.files import is_alive
from ckpt_probe.scheduling.tasks import Busy

BEAT_SECONDS = 5.0
PAUSE_SECONDS = 0.5
STALE_SECONDS = 60.0
"""Without a beat for so long, a claim's holder is taken for dead."""

_seen: dict[Path, tuple[tuple[int, int, str], float]] = {}
"""Claims of others as they were last found, and since when on this process's clock they have looked so."""


class UnclaimedError(DataError):
    """A claim that cannot be made, as its directory cannot be written."""


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds."""

    file: Path

    def beat(self) -> None:
        """Show that its holder is alive."""
        with suppress(OSError):
            os.utime(self.file)


@contextmanager
def claimed(path: Path, *, stale: float = STALE_SECONDS) -> Iterator[Claim | Busy]:
    """A claim on `path` for the time of the `with`, or `Busy` with who has it.

    What is made under a claim may have been finished by another just before: look again once it is held. Raises
    UnclaimedError where the directory cannot be written.
    """
    path = Path(path)
    found = _taken(path, stale)
    if isinstance(found, Busy):
        yield found
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(found, ended), name="claim", daemon=True)
    beating.start()
    try:
        yield found
    finally:
        ended.set()
        beating.join()
        _release(path, found)


@contextmanager
def claimed_in_turn(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """A claim on `path` for the time of the `with`, after whoever has it now; yields whether that was waited for.

    say: where it is told, once. Raises as `claimed`.
    """
    waited = False
    while True:
        with claimed(path) as claim:
            if not isinstance(claim, Busy):
                yield waited
                return
        if not waited:
            say(f"{path}: {claim.holder} is working on it; waiting")
            waited = True
        sleep(PAUSE_SECONDS)


def _taken(path: Path, stale: float) -> Claim | Busy:
    numbers = _numbers(path)
    if numbers:
        holder = _holder(_file(path, numbers[-1]), stale)
        if holder is not None:
            return Busy(holder)
    file = _file(path, numbers[-1] + 1 if numbers else 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("x", encoding="utf-8") as written:
                written.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "token": _token()}))
        except FileExistsError:
            return Busy("another process")
    except OSError as error:
        raise UnclaimedError(f"{path}: cannot be written: {error.strerror or error}") from error
    return Claim(file)


def _holder(file: Path, stale: float) -> str | None:
    """Who holds a claim; None where he is dead, or has let go just now."""
    try:
        with file.open("rb") as opened:
            state, text = os.fstat(opened.fileno()), opened.read(4096).decode(errors="replace")
    except OSError:
        return None if not file.exists() else "another process"
    try:
        told = json.loads(text)
        host, process, token = str(told["host"]), int(told["process"]), str(told["token"])
    except (ValueError, KeyError, TypeError):
        # Made, but not yet written; or by a process that died in between.
        host, process, token = "", 0, text
    if host == socket.gethostname() and not is_alive(process):
        return None
    found, now = (state.st_mtime_ns, state.st_size, token), monotonic()
    before, since = _seen.get(file, (found, now))
    if before != found:
        since = now
    _seen[file] = (found, since)
    if now - since >= stale:
        return None
    return f"process {process} of {host}" if host else "another process"


def _release(path: Path, claim: Claim) -> None:
    # The own one last: as long as it is there, no lower one counts.
    files = [_file(path, number) for number in _numbers(path)]
    for file in [*(file for file in files if _number(file) < _number(claim.file)), claim.file]:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        _seen.pop(file, None)


def _beat(claim: Claim, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        claim.beat()


def _numbers(path: Path) -> list[int]:
    start = f".{path.name}.claim-"
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.startswith(start)]
    except OSError:
        return []
    return sorted(int(end) for name in names if re.fullmatch(r"\d{1,9}", end := name.removeprefix(start)))


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.claim-{number}")


def _number(file: Path) -> int:
    return int(file.name.rpartition("-")[2])


def _token() -> str:
    return secrets.token_hex(8)
