"""Submit tasks and collect their results, in one loop for every kind of worker."""

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
"""Number of workers that may die while they run a task before the task is set aside."""
PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds until an item claimed by another process is tried again: the first pause and the longest one."""


class Backend(Protocol):
    """A runner of tasks."""

    def capacity(self) -> int:
        """Return how many tasks may be submitted at once."""
        ...

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        """Submit a task."""

    def finished(self) -> list[tuple[int, Any]]:
        """Wait until a task has ended, or for a while; return numbers and outcomes of the tasks that have."""
        ...

    def close(self) -> None:
        """End the running tasks and release the workers."""


class _SameProcess:
    """A backend that runs each task in this process when its result is requested, and raises its error at once."""

    def __init__(self) -> None:
        self._tasks: list[tuple[int, Callable[[Any], Any], Any]] = []

    def capacity(self) -> int:
        return 1

    def submit(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        self._tasks.append((number, work, item))

    def finished(self) -> list[tuple[int, Any]]:
        number, work, item = self._tasks.pop()
        return [(number, work(item))]

    def close(self) -> None:
        self._tasks.clear()


def results(
    work: Callable[[T], R | Busy],
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
            then tried again later.
        items: Items, picklable.
        names: Names of the items in messages.
        workers: Workers started for this call alone, or a team that is used again afterwards.
        say: Function that shows a message.

    Raises:
        UsageError: If a cluster cannot be used.
        DataError: If items have failed; each is named.
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
    """Workers that are reused by several calls of `results`, so that they start only once."""

    def __init__(self, workers: Workers, say: Callable[[str], None]) -> None:
        self._workers, self._say = workers, say
        self._backend: Backend | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def backend(self) -> Backend:
        """Return the backend, which is started by the first call."""
        self._backend = self._backend or _backend(self._workers, self._workers.count, self._say)
        return self._backend

    def close(self) -> None:
        """Release the workers; the next call starts others."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None


def in_turn(numbered: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Yield the results of `results` in the order of their items."""
    early: dict[int, R] = {}
    turn = 0
    for number, result in numbered:
        early[number] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1
    # Failed items have no result; `results` raises their error after the last one.
    yield from (early[number] for number in sorted(early))


class _Rounds:
    """The state of all items of one call: waiting, running, or to be tried again."""

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
        self._announced: set[int] = set()
        self._pause = PAUSE

    def outcomes(self) -> Iterator[tuple[int, Any]]:
        while self._waiting or self._busy or self._suspects or self._running:
            self._submit_next()
            for number, outcome in self._backend.finished():
                self._running.discard(number)
                if isinstance(outcome, Busy):
                    self._postpone(number, outcome)
                    continue
                self._pause = PAUSE
                if not isinstance(outcome, Lost):
                    yield number, outcome
                elif self._struck(number, outcome.times):
                    cause = f"its worker process was killed {self._strikes[number]} times (often for lack of memory)"
                    yield number, Failed(f"{cause}, so it was set aside")

    def close(self) -> None:
        if self._team is None:
            self._backend.close()
        elif self._running:
            # A task that is still running would be mistaken for one of the next call.
            self._team.close()

    def _submit_next(self) -> None:
        if self._suspects:
            # Alone, so that if a worker dies again, this item is known to be the cause.
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

    def _postpone(self, number: int, busy: Busy) -> None:
        self._busy.append(number)
        if number not in self._announced:
            self._announced.add(number)
            self._say(f"{self._names[number]}: {busy.holder} is working on it; continuing with the others")

    def _struck(self, number: int, times: int) -> bool:
        self._strikes[number] += times
        # If several tasks were running, another one may be the cause.
        if self._strikes[number] >= STRIKES and number in self._alone:
            return True
        self._suspects.append(number)
        return False


def _backend(workers: Workers, count: int, say: Callable[[str], None]) -> Backend:
    if workers.scheduler is not None:
        from ckpt_probe.scheduling.cluster import Cluster

        return Cluster(workers.scheduler, say)
    if count == 1:
        return _SameProcess()
    from ckpt_probe.scheduling.processes import Processes

    return Processes(count)


def _error(failed: dict[str, Failed], items: int) -> DataError | UsageError:
    # A single CkptProbeError reads as it would without workers.
    each = [f"{name}: {failure.message}" for name, failure in failed.items()]
    message = f"{len(failed)} of {items} failed, the others are done: {listed(each, most=3)}"
    if len(failed) == 1:
        name, failure = next(iter(failed.items()))
        message = failure.message if failure.ours else f"{name}: {failure.message}"
    return (UsageError if all(failure.wrong_use for failure in failed.values()) else DataError)(message)
