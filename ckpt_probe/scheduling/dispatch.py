"""Submit tasks and collect their results, in one loop for every kind of worker."""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, listed
from ckpt_probe.scheduling.tasks import Busy, Failed, Lost, Workers

if TYPE_CHECKING:
    from ckpt_probe.scheduling.cluster import Cluster
    from ckpt_probe.scheduling.processes import Processes

T = TypeVar("T")
R = TypeVar("R")

STRIKES = 3
"""Number of workers that may die while they run a task before the task is set aside."""
PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds until an item claimed by another process is tried again: the first pause and the longest one."""


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


class Team:
    """Workers that are reused by several calls of `results`, so that they start only once.

    Args:
        workers: The workers.
        say: Function that shows a message.
        items: Largest number of items of a call, for which more processes are not needed; None if unknown.
    """

    def __init__(self, workers: Workers, say: Callable[[str], None], items: int | None = None) -> None:
        self._workers, self._say, self._backend = workers, say, None
        self._count = workers.count if items is None else min(workers.count, items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def backend(self) -> "Cluster | Processes | None":
        """Return the backend that runs tasks, which the first call starts; None for this process itself."""
        if self._backend is None and self._workers.scheduler is not None:
            from ckpt_probe.scheduling.cluster import Cluster

            self._backend = Cluster(self._workers.scheduler, self._say)
        elif self._backend is None and self._count > 1:
            from ckpt_probe.scheduling.processes import Processes

            self._backend = Processes(self._count)
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
