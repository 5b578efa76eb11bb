"""Output to the terminal: results, progress bars and messages."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ckpt_probe.addresses import without_credentials
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.errors import printable
from ckpt_probe.progress import NullProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

PIPED_WIDTH = 120
TERMINAL_VARIABLES = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Environment variables that make rich treat a pipe as a terminal."""


def console(*, width: int | None = None) -> "Console":
    """Return a console on standard output.

    Args:
        width: Characters of a line; None for the width of the terminal, or 120 if it is not a terminal.
    """
    from rich.console import Console

    if width is None and not sys.stdout.isatty():
        width = PIPED_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def quiet() -> bool:
    """Return whether the command line contains --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))


def say(text: str) -> None:
    """Print a line on standard error, which keeps standard output for results; do nothing with --quiet."""
    if not quiet():
        print(printable(without_credentials(flags_for_keywords(text))), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a line of text on standard output, with keywords as flags."""
    click.echo(printable(flags_for_keywords(text)))


@contextmanager
def bars() -> Iterator[Progress]:
    """Yield progress with bars on standard error; without bars if it is not a terminal, or with --quiet."""
    if quiet() or not (sys.stderr.isatty() or any(os.environ.get(name) for name in TERMINAL_VARIABLES)):
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
    """Progress without bars, only messages."""

    def message(self, text: str) -> None:
        """Print a line on standard error."""
        say(text)


class Bars:
    """Progress with bars on a terminal, a `ckpt_probe.progress.Progress`."""

    def __init__(self, progress: "Display") -> None:
        self._progress = progress

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator["Bar"]:
        """Show a bar until its task ends."""
        identity = self._progress.add_task(printable(name), total=total, unit=unit, facts="")
        try:
            yield Bar(self._progress, identity)
        finally:
            self._progress.remove_task(identity)

    def message(self, text: str) -> None:
        """Print a line above the bars."""
        if self._progress.disable:
            say(text)
        else:
            self._progress.console.print(printable(flags_for_keywords(text)), markup=False)


class Bar:
    """Bar of a task, a `ckpt_probe.progress.Task`."""

    def __init__(self, progress: "Display", identity: "TaskID") -> None:
        self._progress = progress
        self._identity = identity

    def advance(self, amount: int = 1, **facts: object) -> None:
        """Move the bar by `amount` and show `facts` beside it."""
        self._progress.update(self._identity, advance=amount)
        if facts:
            text = "  ".join(f"{name} {_short(value)}" for name, value in facts.items())
            self._progress.update(self._identity, facts=text)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
