"""Run independent tasks: one loop for every kind of worker, the workers, and the outcomes of tasks."""

import os
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ckpt_probe.addresses import Credentials, redacted, use_credentials
from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line, listed
from ckpt_probe.files import code_hash
from ckpt_probe.keywords import whole_number

if TYPE_CHECKING:
    from ckpt_probe.scheduling.backends import Cluster, Processes

T = TypeVar("T")
R = TypeVar("R")

STRIKES = 3
"""Number of workers that may die while they run a task before the task is set aside."""
PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds until an item claimed by another process is tried again: the first pause and the longest one."""

_cache: list[tuple[Any, Any]] = []
_callers: list["Caller"] = []
_alone = threading.Lock()


@dataclass(frozen=True)
class Workers:
    """The workers that run tasks.

    Attributes:
        count: Number of processes of this machine; 1 for this process alone.
        scheduler: Address of a Dask scheduler, such as tcp://host:8786, or the file that it has written; its workers
            run the tasks instead.
    """

    count: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole_number("workers", self.count, 1))
        if self.scheduler is not None and self.count != 1:
            raise UsageError("`workers` and `scheduler` exclude each other: a cluster has workers of its own")

    @property
    def alone(self) -> bool:
        """Return whether all tasks run in this process."""
        return self.count == 1 and self.scheduler is None


@dataclass(frozen=True)
class Busy:
    """Outcome of a task whose item another process is working on; the item is tried again later.

    Attributes:
        holder: Description of the other process.
    """

    holder: str


@dataclass(frozen=True)
class Failed:
    """Outcome of a task that raised an error.

    Attributes:
        message: Message of the error.
        ours: Whether it is a `CkptProbeError`, whose message names the file that it is about.
        wrong_use: Whether it is a `UsageError`.
        trace: Traceback of an unexpected error.
    """

    message: str
    ours: bool = False
    wrong_use: bool = False
    trace: str | None = None


@dataclass(frozen=True)
class Lost:
    """Outcome of a task whose worker process was killed.

    Attributes:
        times: Number of workers that were killed.
    """

    times: int = 1


@dataclass(frozen=True)
class Caller:
    """The process that submits tasks to a worker of a cluster, which may serve several.

    Attributes:
        directory: Directory against which relative paths are resolved.
        name: Unique name of the call.
        code: Version and hash of the package, which the worker's must equal.
    """

    directory: str
    name: str
    code: str


def results(
    work: Callable[[T], R | Busy | Failed],
    items: Sequence[T],
    *,
    names: Sequence[str],
    workers: "Workers | Team",
    say: Callable[[str], None],
) -> Generator[tuple[int, R], None, None]:
    """Yield (index of the item, result of `work`) for each item, in the order in which results are ready.

    In this process an error ends the loop at once; with workers the other items are finished first. An item whose
    worker dies three times is set aside.

    Args:
        work: Function of one item, picklable. It returns `Busy` if another process is working on the item, which is
            then tried again later, and `Failed` in place of an error that must not end the loop in this process.
        items: Items, picklable.
        names: Names of the items in messages.
        workers: Workers started for this call alone, or a team that is used again afterwards.
        say: Function that shows a message.

    Raises:
        UsageError: If a cluster cannot be used.
        DataError: If items have failed; each is named.
    """
    team = workers if isinstance(workers, Team) else Team(workers, say, len(items))
    backend = team.backend()
    waiting, busy, suspects = deque(range(len(items))), deque[int](), deque[int]()
    running, alone, announced = set[int](), set[int](), set[int]()
    strikes, failed, pause = Counter[int](), dict[int, Failed](), PAUSE
    try:
        while waiting or busy or suspects or running:
            if suspects:
                # Alone, so that if a worker dies again, this item is known to be the cause.
                following = [] if running else [suspects.popleft()]
                alone.update(following)
            else:
                if not waiting and not running:
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    waiting, busy = busy, deque()
                free = 1 if backend is None else backend.capacity() - len(running)
                following = [waiting.popleft() for _ in range(min(len(waiting), free))]
            running.update(following)
            if backend is None:
                ended: list[tuple[int, Any]] = [(number, work(items[number])) for number in following]
            else:
                for number in following:
                    backend.submit(number, work, items[number])
                ended = backend.finished()
            for number, outcome in ended:
                running.discard(number)
                if isinstance(outcome, Busy):
                    busy.append(number)
                    if number not in announced:
                        announced.add(number)
                        say(f"{names[number]}: {outcome.holder} is working on it; continuing with the others")
                    continue
                pause = PAUSE
                if isinstance(outcome, Lost):
                    strikes[number] += outcome.times
                    # If several tasks were running, another one may be the cause.
                    if strikes[number] < STRIKES or number not in alone:
                        suspects.append(number)
                        continue
                    cause = f"its worker process was killed {strikes[number]} times (often for lack of memory)"
                    outcome = Failed(f"{cause}, so it was set aside")
                if isinstance(outcome, Failed):
                    failed[number] = outcome
                    if outcome.trace is not None:
                        say(f"{names[number]}: {outcome.trace}")
                else:
                    yield number, outcome
    finally:
        # A task that is still running would be mistaken for one of the next call.
        if running or team is not workers:
            team.close()
    if failed:
        raise joint_error({names[number]: failed[number] for number in sorted(failed)}, len(items))


class Team(AbstractContextManager["Team"]):
    """Workers that are reused by several calls of `results`, so that they start only once.

    Args:
        workers: The workers.
        say: Function that shows a message.
        items: Largest number of items of a call, for which more processes are not needed; None if unknown.
    """

    def __init__(self, workers: Workers, say: Callable[[str], None], items: int | None = None) -> None:
        self._workers, self._say, self._backend = workers, say, None
        self._count = workers.count if items is None else min(workers.count, items)

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def backend(self) -> "Cluster | Processes | None":
        """Return the backend that runs tasks, which the first call starts; None for this process itself."""
        scheduler = self._workers.scheduler
        if self._backend is None and (scheduler is not None or self._count > 1):
            from ckpt_probe.scheduling.backends import Cluster, Processes

            self._backend = Processes(self._count) if scheduler is None else Cluster(scheduler, self._say)
        return self._backend

    def close(self) -> None:
        """Release the workers; the next call starts others."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None


def in_turn(numbered: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Yield the results of `results` in the order of their items; raise the error of failed items after the last."""
    early: dict[int, R] = {}
    turn, error = 0, None
    try:
        for number, result in numbered:
            early[number] = result
            while turn in early:
                yield early.pop(turn)
                turn += 1
    except CkptProbeError as caught:
        error = caught
    # Failed items have no result, and the items after them have not had their turn.
    yield from (early[number] for number in sorted(early))
    if error is not None:
        raise error


def joint_error(failed: dict[str, Failed], items: int) -> DataError | UsageError:
    """Return the error of failed items by name; that of a single item is its own, and a reason of several is one.

    Args:
        failed: The failures.
        items: Number of all items.
    """
    kind = UsageError if all(failure.wrong_use for failure in failed.values()) else DataError
    if len(failed) == 1:
        [(name, failure)] = failed.items()
        return kind(failure.message if failure.ours else f"{name}: {failure.message}")
    items_by_reason: dict[str, list[str]] = {}
    for name, failure in failed.items():
        # Most messages begin with the file of the item.
        file, _, reason = failure.message.partition(": ")
        if not reason or name not in (*Path(file).parts, Path(file).stem):
            file, reason = name, failure.message
        items_by_reason.setdefault(reason, []).append(file)
    others = ", the others are done" if len(failed) < items else ""
    each = [f"{listed(names, most=3)}: {reason}" for reason, names in items_by_reason.items()]
    return kind(f"{len(failed)} of {items} failed{others}: {listed(each, most=3, separator='; ')}")


@cache
def installed_code() -> str:
    """Return the code that this process runs: the version of the package and a hash of its modules."""
    from importlib.metadata import version  # takes longer to load than this module

    return f"{version('ckpt-probe')} {code_hash()[:8]}"


def describe_mismatch(worker: str, theirs: str, ours: str) -> str:
    """Return the message for a worker whose code differs from that of the caller."""
    hint = "install the same on the scheduler and on all workers"
    return f"{worker} has another ckpt-probe ({theirs} / here {ours}); {hint}"


def made_once(key: Any, make: Callable[[], T]) -> T:
    """Return the result of `make`, cached in this process until another key is requested.

    A worker thus opens a model and its data once for all checkpoints of one caller.
    """
    if not _cache or _cache[0][0] != key:
        _cache.clear()
        _cache.append((key, make()))
    return _cache[0][1]


def attempt(work: Callable[[Any], Any], item: Any, credentials: Credentials, caller: Caller | None = None) -> Any:
    """Return the result of `work` for an item, or `Failed`; workers call this.

    Only one task runs at a time in a process: the cached model holds the weights of one checkpoint, which another
    thread would overwrite.

    Args:
        work: Function of one item.
        item: The item.
        credentials: Credentials of addresses in the item, used for this task only.
        caller: Process that submitted the task, if the worker may serve several.
    """
    with _alone, use_credentials(credentials):
        try:
            if caller is not None:
                if caller.code != installed_code():
                    raise UsageError(describe_mismatch(socket.gethostname(), installed_code(), caller.code))
                # Relative names have another meaning for another caller, and so has the cache.
                os.chdir(caller.directory)
                if _callers != [caller]:
                    _cache.clear()
                    _callers[:] = [caller]
            return work(item)
        except CkptProbeError as error:
            return Failed(str(error), ours=True, wrong_use=isinstance(error, UsageError))
        except Exception as error:
            return Failed(redacted(last_line(error)), trace=redacted(traceback.format_exc()))
