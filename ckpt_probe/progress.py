"""How long work tells how far it is, without knowing who listens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Say that `amount` more is done; `facts` (such as loss=0.3) are shown beside the bar."""


class Progress(Protocol):
    """Whoever shows progress: the console, or nobody."""

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        """A context manager that gives a `Task`; tasks may be nested (a series, then a checkpoint)."""
        ...

    def message(self, text: str) -> None:
        """Show one line, above the bars."""


class Silent:
    """Progress that nobody sees; the default of every function that takes one."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator[Task]:
        """A task that shows nothing."""
        yield self

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Nothing to show."""

    def message(self, text: str) -> None:
        """Nothing to say."""


@dataclass
class Said(Silent):
    """Progress of a worker elsewhere: its messages are kept for whoever asked."""

    messages: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        """Keep a line."""
        self.messages.append(text)


class Once:
    """Another's progress that says each message once: what holds for every checkpoint is said for the first."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: set[str] = set()

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        """A task of the other's."""
        return self._progress.task(name, total, unit)

    def message(self, text: str) -> None:
        """Show one line, unless it was shown before."""
        if text not in self._said:
            self._said.add(text)
            self._progress.message(text)
