"""Progress of long work: functions report it here and do not know whether a console shows it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Task(Protocol):
    """A unit of work that is running."""

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Report that more of the work is done.

        Args:
            amount: Number of units finished since the last call.
            **facts: Values to show beside the bar, such as `loss=0.3`.
        """


class Progress(Protocol):
    """A display of progress, such as the bars of the console."""

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        """Start a task; tasks may be nested (a series, then a checkpoint).

        Args:
            name: Name of the task.
            total: Number of units until it is finished; None if unknown.
            unit: Name of the units, such as "batches".

        Returns:
            A context manager that yields the task and ends it.
        """
        ...

    def message(self, text: str) -> None:
        """Show a line above the bars."""


class NullProgress:
    """Progress that shows nothing; the default of every function that takes progress."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator[Task]:
        """Yield a task that shows nothing."""
        yield self

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Drop the message."""


@dataclass
class MessageLog(NullProgress):
    """Progress that collects messages, for example those of a worker process."""

    messages: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        """Append a message."""
        self.messages.append(text)


class DeduplicatedProgress:
    """Wrapper of another progress that shows each distinct message only once, such as a warning of every checkpoint."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: set[str] = set()

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        """Start a task of the wrapped progress."""
        return self._progress.task(name, total, unit)

    def message(self, text: str) -> None:
        """Show a line unless it was shown before."""
        if text not in self._shown:
            self._shown.add(text)
            self._progress.message(text)
