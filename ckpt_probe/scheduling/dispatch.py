"""Tasks given out and their results taken in: one loop for every kind of worker."""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol, Self, TypeVar

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.scheduling.tasks import Busy, Failed, Lost, Workers

T = TypeVar("T")
R = TypeVar("R")

STRIKES = 3
"""Workers that a task may take with it before it is set aside."""
PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds until an item that another process is at is looked at again, at first and at most."""


class Backend(Protocol):
    """Who runs tasks."""

    def capacity(self) -> int:
        """How many tasks may be given out at once."""
        ...

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        """Give out a task."""

    def finished(self) -> list[tuple[int, Any]]:
        """Wait until a task has ended, or for a while; what came of those that have, by their numbers."""
        ...

    def close(self) -> None:
        """Give out nothing more, and end what runs."""


class _Here:
    """This process: a task runs when its result is waited for, and its error is raised at once."""

    def __init__(self) -> None:
        self._given: list[tuple[int, Callable[[Any], Any], Any]] = []

    def capacity(self) -> int:
        return 1

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        self._given.append((number, work, item))

    def finished(self) -> list[tuple[int, Any]]:
        number, work, item = self._given.pop()
        return [(number, work(item))]

    def close(self) -> None:
        self._given.clear()


def results(
    work: Callable[[T], R | Busy],
    items: Sequence[T],
    *,
    names: Sequence[str],
    workers: "Workers | Team",
    say: Callable[[str], None],
) -> Generator[tuple[int, R], None, None]:
    """What `work` makes of each item, as (its place among the items, result), in the order in which they are ready.

    work: a function that other processes can be sent; it answers `Busy` where another process is at the item, which is
    then tried again later. names: what the items are called in messages; say: where those go. workers: hired for this
    call alone, or a team that outlasts it. In this process an error
    ends the work at once; elsewhere the other items are worked through first. An item whose worker ends three times is
    set aside. Raises UsageError where a cluster cannot be used, DataError where items have failed, naming each.
    """
    failed: dict[int, Failed] = {}
    with closing(_Rounds(work, items, names, workers, say)) as rounds:
        for number, outcome in rounds.outcomes():
            if isinstance(outcome, Failed):
                failed[number] = outcome
                if outcome.trace is not None:
                    say(f"{names[number]}: {outcome.trace}")
            else:
                yield number, outcome
    if failed:
        raise _error({names[number]: failed[number] for number in sorted(failed)}, len(items))


class Team:
    """Workers that are kept from one call of `results` to the next, which spares starting them anew."""

    def __init__(self, workers: Workers, say: Callable[[str], None]) -> None:
        self._workers, self._say = workers, say
        self._backend: Backend | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def backend(self) -> Backend:
        """Whoever runs the tasks, started when the first is at hand."""
        self._backend = self._backend or _backend(self._workers, self._workers.count, self._say)
        return self._backend

    def close(self) -> None:
        """Let them go; the next call hires others."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None


def in_turn(found: Iterable[tuple[int, R]]) -> Iterator[R]:
    """The results by the order of their items; one that is early is held until its turn."""
    early: dict[int, R] = {}
    turn = 0
    for number, result in found:
        early[number] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1
    # Those that failed are missing, and their error comes after the last.
    yield from (early[number] for number in sorted(early))


class _Rounds:
    """Items waiting, at work, or to be tried again."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        names: Sequence[str],
        workers: "Workers | Team",
        say: Callable[[str], None],
    ) -> None:
        self._work, self._items, self._names, self._say = work, items, names, say
        self._team = workers if isinstance(workers, Team) else None
        if isinstance(workers, Team):
            self._backend = workers.backend()
        else:
            self._backend = _backend(workers, min(workers.count, max(1, len(items))), say)
        self._waiting = deque(range(len(items)))
        self._busy: deque[int] = deque()
        self._suspects: deque[int] = deque()
        self._alone: set[int] = set()
        self._running: set[int] = set()
        self._strikes: Counter[int] = Counter()
        self._told: set[int] = set()
        self._pause = PAUSE

    def outcomes(self) -> Iterator[tuple[int, Any]]:
        while self._waiting or self._busy or self._suspects or self._running:
            self._give_out()
            for number, outcome in self._backend.finished():
                self._running.discard(number)
                if isinstance(outcome, Busy):
                    self._put_off(number, outcome)
                    continue
                self._pause = PAUSE
                if not isinstance(outcome, Lost):
                    yield number, outcome
                elif self._struck(number, outcome.times):
                    told = f"its worker process was killed {self._strikes[number]} times (often for lack of memory)"
                    yield number, Failed(f"{told}, so it was set aside")

    def close(self) -> None:
        if self._team is None:
            self._backend.close()
        elif self._running:
            # What still runs would be taken for an item of the next call.
            self._team.close()

    def _give_out(self) -> None:
        if self._suspects:
            # Alone, so that what ends a worker again is known to be this item.
            if not self._running:
                number = self._suspects.popleft()
                self._alone.add(number)
                self._submit(number)
            return
        if not self._waiting and not self._running:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._waiting, self._busy = self._busy, deque()
        while self._waiting and len(self._running) < self._backend.capacity():
            self._submit(self._waiting.popleft())

    def _submit(self, number: int) -> None:
        self._running.add(number)
        self._backend.submit(number, self._work, self._items[number])

    def _put_off(self, number: int, busy: Busy) -> None:
        self._busy.append(number)
        if number not in self._told:
            self._told.add(number)
            self._say(f"{self._names[number]}: {busy.holder} is working on it; continuing with the others")

    def _struck(self, number: int, times: int) -> bool:
        self._strikes[number] += times
        # Beside others it may be one of them that is to blame.
        if self._strikes[number] >= STRIKES and number in self._alone:
            return True
        self._suspects.append(number)
        return False


def _backend(workers: Workers, count: int, say: Callable[[str], None]) -> Backend:
    if workers.scheduler is not None:
        from ckpt_probe.scheduling.cluster import Cluster

        return Cluster(workers.scheduler, say)
    if count == 1:
        return _Here()
    from ckpt_probe.scheduling.processes import Processes

    return Processes(count)


def _error(failed: dict[str, Failed], items: int) -> DataError | UsageError:
    # An error that is the only one, and ours, reads as it would in this process.
    each = [f"{name}: {found.message}" for name, found in failed.items()]
    told = f"{len(failed)} of {items} failed, the others are done: {listed(each, most=3)}"
    if len(failed) == 1:
        name, found = next(iter(failed.items()))
        told = found.message if found.ours else f"{name}: {found.message}"
    return (UsageError if all(found.wrong_use for found in failed.values()) else DataError)(told)
