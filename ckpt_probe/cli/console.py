"""The one place that owns the terminal: output for people, live bars, and single lines for messages."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import printable
from ckpt_probe.progress import NullProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

PIPED_WIDTH = 120
PRETENDING = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables by which a person has rich take a pipe for a terminal."""


def console(*, width: int | None = None) -> "Console":
    """Where results for people go: standard output; a fixed width where that is no terminal."""
    from rich.console import Console

    if width is None and not sys.stdout.isatty():
        width = PIPED_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def quiet() -> bool:
    """Whether the command line asks for nothing but results and errors."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))


def say(text: str) -> None:
    """One line on standard error, so that results on standard output stay clean; none with --quiet."""
    if not quiet():
        print(printable(without_credentials(text)), file=sys.stderr, flush=True)


@contextmanager
def bars() -> Iterator[Progress]:
    """Live bars on standard error for the time of the `with`; none where that is no terminal, or with --quiet."""
    if quiet() or not (sys.stderr.isatty() or any(os.environ.get(name) for name in PRETENDING)):
        yield Lines()  # rich takes longer to load than a small job takes
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn

    terminal = Console(file=sys.stderr, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("{task.fields[facts]}"),
        console=terminal,
        disable=not terminal.is_terminal,
        transient=True,
        refresh_per_second=5,
    ) as progress:
        yield Bars(progress)


class Lines(NullProgress):
    """No bars, only messages."""

    def message(self, text: str) -> None:
        """One line on standard error."""
        say(text)


class Bars:
    """The `ckpt_probe.progress.Progress` that a person sees."""

    def __init__(self, progress: "Display") -> None:
        self._progress = progress

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator["Bar"]:
        """One bar, gone when its work is done."""
        identity = self._progress.add_task(printable(name), total=total, unit=unit, facts="")
        try:
            yield Bar(self._progress, identity)
        finally:
            self._progress.remove_task(identity)

    def message(self, text: str) -> None:
        """One line above the bars."""
        if self._progress.disable:
            say(text)
        else:
            self._progress.console.print(printable(text), markup=False)


class Bar:
    """One running piece of work on the screen."""

    def __init__(self, progress: "Display", identity: "TaskID") -> None:
        self._progress = progress
        self._identity = identity

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Move the bar by `amount` and show `facts` beside it."""
        self._progress.update(self._identity, advance=amount)
        if facts:
            shown = "  ".join(f"{name} {_short(value)}" for name, value in facts.items())
            self._progress.update(self._identity, facts=shown)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
