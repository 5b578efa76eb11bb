"""Submit tasks and collect their results, in one loop for every kind of worker."""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, listed
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
    backend = workers.backend() if isinstance(workers, Team) else _backend(workers, len(items), say)
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
                following = [waiting.popleft() for _ in range(min(len(waiting), backend.capacity() - len(running)))]
            for number in following:
                running.add(number)
                backend.submit(number, work, items[number])
            for number, outcome in backend.finished():
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
        if not isinstance(workers, Team):
            backend.close()
        elif running:
            # A task that is still running would be mistaken for one of the next call.
            workers.close()
    if failed:
        raise joint_error({names[number]: failed[number] for number in sorted(failed)}, len(items))


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


def _backend(workers: Workers, items: int, say: Callable[[str], None]) -> Backend:
    """Start a backend with at most one process for each item."""
    if workers.scheduler is not None:
        from ckpt_probe.scheduling.cluster import Cluster

        return Cluster(workers.scheduler, say)
    count = min(workers.count, max(1, items))
    if count == 1:
        return _SameProcess()
    from ckpt_probe.scheduling.processes import Processes

    return Processes(count)


def joint_error(failed: dict[str, Failed], items: int) -> DataError | UsageError:
    """Return the error of failed items by name; that of a single item is its own.

    Args:
        failed: The failures.
        items: Number of all items.
    """
    each = [f"{name}: {failure.message}" for name, failure in failed.items()]
    others = ", the others are done" if len(failed) < items else ""
    message = f"{len(failed)} of {items} failed{others}: {listed(each, most=3)}"
    if len(failed) == 1:
        name, failure = next(iter(failed.items()))
        message = failure.message if failure.ours else f"{name}: {failure.message}"
    return (UsageError if all(failure.wrong_use for failure in failed.values()) else DataError)(message)
