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

_CLAIM = re.compile(r"\.(.+)\.claim-(\d{1,9})")
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


def remove_abandoned(folder: Path) -> None:
    """Remove claims on files of a directory that are there, where their holder, of this machine, is dead.

    Such a one has ended after its file had its name, and nobody will ask for that again.
    """
    for name in _names(folder):
        if (found := _CLAIM.fullmatch(name)) and (folder / found[1]).exists():
            told = _told(folder / name)
            if told is not None and told[0] == socket.gethostname() and not is_alive(told[1]):
                with suppress(OSError):
                    (folder / name).unlink()


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
    # Where nothing is told it is made, but not yet written; or by a process that died in between.
    host, process, token = _parsed(text) or ("", 0, text)
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


def _told(file: Path) -> tuple[str, int, str] | None:
    """Host, process and token of a claim; None where they cannot be read."""
    try:
        return _parsed(file.read_bytes()[:4096].decode(errors="replace"))
    except OSError:
        return None


def _parsed(text: str) -> tuple[str, int, str] | None:
    try:
        told = json.loads(text)
        return str(told["host"]), int(told["process"]), str(told["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


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
    found = [_CLAIM.fullmatch(name) for name in _names(path.parent)]
    return sorted(int(match[2]) for match in found if match and match[1] == path.name)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if ".claim-" in entry.name]
    except OSError:
        return []


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.claim-{number}")


def _number(file: Path) -> int:
    return int(file.name.rpartition("-")[2])


def _token() -> str:
    return secrets.token_hex(8)
