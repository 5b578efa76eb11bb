"""Output of commands: records as a table, JSON Lines, CSV or a file; messages and progress bars on the terminal."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.addresses import without_credentials
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.cli.options import Function
from ckpt_probe.errors import DataError, UsageError, printable
from ckpt_probe.progress import NullProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

Record = Mapping[str, Any]

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


def discard_output() -> None:
    """Discard further text for standard output, whose reader (such as `head`) has exited."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


@dataclass(frozen=True)
class Output:
    """Output of the records of a command: printed as a table, JSON Lines or CSV, and also written into a file.

    Attributes:
        json: Whether to print JSON Lines.
        csv: Whether to print CSV.
        wide: Whether a table has every column, however wide the terminal is.
        out: File to write, whose suffix names its format; None for none.
        overwrite: Whether to replace an existing file.
    """

    json: bool = False
    csv: bool = False
    wide: bool = False
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for two formats, an existing file, or missing libraries of its format."""
        if self.json and self.csv:
            raise UsageError("--json and --csv exclude each other")
        if self.out is not None:
            from ckpt_probe.reporting.formats import require_writable

            require_writable(self.out, overwrite=self.overwrite)

    @property
    def is_table(self) -> bool:
        """Return whether records are printed as a table."""
        return not (self.json or self.csv)

    def print(
        self,
        records: Iterable[Record],
        print_table: Callable[[list[Record]], None] | None = None,
        to_rows: Callable[[list[Any]], list[Any]] = list,
    ) -> list[Any]:
        """Print records on standard output: JSON Lines one by one as they arrive, other formats at the end.

        Args:
            records: The records.
            print_table: Function that prints them as a table; None for the table of `analyze`.
            to_rows: Function that makes rows of CSV of records that are not flat.

        Returns:
            The records.

        Raises:
            DataError: If some of the records cannot be computed, after the others are printed and written.
        """
        from ckpt_probe.reporting.formats import to_csv, to_json_line

        rows, error = [], None
        try:
            for record in records:
                if self.json:
                    with self._if_pipe_closes():
                        click.echo(printable(to_json_line(record)))
                rows.append(record)
        except DataError as caught:
            if not rows:
                raise
            error = caught
        with self._if_pipe_closes():
            if self.csv:
                click.echo(to_csv(to_rows(rows)), nl=False)
            elif not self.json:
                (print_table or self.print_table)(rows)
        if error is not None:
            self.write(rows, to_rows=to_rows)
            raise error
        return rows

    @contextmanager
    def _if_pipe_closes(self) -> Iterator[None]:
        """Drop the printed output if the reader of the pipe has exited and there is a file to write."""
        try:
            yield
        except BrokenPipeError:
            if self.out is None:
                raise
            discard_output()

    def print_table(self, records: list[Record]) -> None:
        """Print records as a table with footnotes."""
        from ckpt_probe.reporting.table import footnotes, records_table

        screen = self.screen
        hint = " with --wide, --json or --csv"
        screen.print(records_table(records, width=self.table_width, hint=hint))
        for note in footnotes(records):
            show(note)

    @property
    def screen(self) -> "Console":
        """Console for tables, wide enough for every column if `wide` is set."""
        return console(width=10_000 if self.wide else None)

    @property
    def table_width(self) -> int | None:
        """Number of characters to which a table is fitted; None for a table of any width."""
        return None if self.wide else self.screen.width

    def write(
        self, records: Iterable[Record], noun: str = "records", to_rows: Callable[[list[Any]], list[Any]] = list
    ) -> None:
        """Write records into the file, if there is one, in the format that its suffix names; see `print`."""
        if self.out is None:
            return
        from ckpt_probe.reporting.formats import write_records

        rows = list(records)
        is_table = self.out.suffix.lower() in {".parquet", ".csv"}
        write_records(to_rows(rows) if is_table else rows, self.out, overwrite=self.overwrite)
        say(f"{self.out}: {len(rows)} {noun}")


def takes_output(function: Function) -> Function:
    """Pass --json, --csv and --wide, and -o FILE with --overwrite, to a command as one argument, an `Output`."""

    @wraps(function)
    def command(**options: Any) -> Any:
        names = [field.name for field in fields(Output) if field.name in options]
        return function(output=Output(**{name: options.pop(name) for name in names}), **options)

    return command


def take_printing(options: dict[str, Any]) -> Output:
    """Remove --json, --csv and --wide from the options of a command whose results are a directory; return them."""
    return Output(**{name: options.pop(name) for name in ("json", "csv", "wide") if name in options})
