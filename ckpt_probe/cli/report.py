"""`ckpt-probe report`."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.options import byte_count
from ckpt_probe.errors import DataError, UsageError

EXAMPLE = """\b
Examples: ckpt-probe report dumps/digits paths/ab -o report.html
          ckpt-probe report plain=dumps/plain decay=dumps/decay -o runs.html --figures figures --format pdf"""
EVERY = 5.0
"""Default seconds between two checks of --follow."""
FORMATS = ("svg", "pdf", "png")


@click.command("report", epilog=EXAMPLE)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES...")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="HTML file to write the page to.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also draw the plots into this directory, one file per plot.",
)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="svg", show_default=True, help="Format of the figures."
)
@click.option("--title", default="What happened in these runs", show_default=True, help="Heading of the page.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Text file with the names of the classes, one per line.",
)
@click.option("--split", "splits", multiple=True, show_default="all", help="Split of the dumps to analyze; repeatable.")
@click.option("--memory", default="2GiB", show_default=True, help="Memory limit for the analysis of one dump.")
@click.option(
    "--mir-rows",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Number of stored rows for MIR between layers; 0 leaves it out.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes that analyze dumps.",
)
@click.option("--no-cache", is_flag=True, help="Do not read or write the cache beside the dumps.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page and existing figures.")
@click.option("--follow", is_flag=True, help="Write the page again whenever a source changes; ends with Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    show_default="5",
    help="With --follow: seconds between two checks of the sources.",
)
def command(
    sources: tuple[str, ...],
    out: Path | None,
    figures: Path | None,
    follow: bool,
    every: float | None,
    kind: str,
    labels: Path | None,
    memory: str,
    mir_rows: int,
    no_cache: bool,
    overwrite: bool,
    splits: tuple[str, ...],
    title: str,
    workers: int,
) -> None:
    """Write a page of all results: metrics, matrices, spectra, classes, paths, planes and their provenance.

    SOURCES are dumps (a file or a directory; analyzed, with the cache of analyze), records (.jsonl files, or the
    directory of a run), and the directories of paths and planes; their content decides which. NAME=SOURCE sets the
    name in the page. The page is a single file that contains its data and loads nothing; it opens in any browser.
    """
    from ckpt_probe.files import refuse_existing

    if out is None and figures is None:
        raise UsageError("choose an output: -o report.html for a page, --figures DIR for figures, or both")
    if every is not None and not follow:
        raise UsageError("--every needs --follow")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    options = {
        "figure_format": kind,
        "title": title,
        "labels": labels or (),
        "splits": splits,
        "memory": byte_count(memory),
        "mir_rows": mir_rows,
        "workers": workers,
        "cache": not no_cache,
    }
    write = partial(_write, sources, out, figures, options)
    if not follow:
        write(overwrite=overwrite)
        return
    made = [path.resolve() for path in (out, figures) if path is not None]
    with suppress(KeyboardInterrupt):
        _follow(sources, write, made, every or EVERY, overwrite=overwrite)


def _write(
    sources: tuple[str, ...], out: Path | None, figures: Path | None, options: dict[str, Any], *, overwrite: bool
) -> None:
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.reporting.outputs import report

    with bars() as progress:
        summary = report(
            sources, out, figures=figures, command=_command_line(), overwrite=overwrite, progress=progress, **options
        )
        if figures is not None:
            say(f"{figures}: {len(summary.figures)} figures")
        if summary.size is not None:
            say(f"{out}: {summary.sections} sections, {summary.size / 1e6:.1f} MB; open it in a browser")


def _follow(
    sources: tuple[str, ...], write: Callable[..., None], made: list[Path], every: float, *, overwrite: bool
) -> None:
    from ckpt_probe.cli.console import say

    drawn = None
    while True:
        # Before reading, so that a change during reading is drawn in the next round.
        stamps = _stamps(sources, made)
        if stamps != drawn:
            drawn = stamps
            try:
                write(overwrite=overwrite)
                overwrite = True
            except DataError as error:
                say(f"{error}; waiting for a change")
        time.sleep(every)


def _stamps(sources: tuple[str, ...], made: list[Path]) -> list[tuple[str, int, int]]:
    from ckpt_probe.files import stamp_of
    from ckpt_probe.reporting.sources import named

    stamps = [stamp for text in sources for stamp in stamp_of(named(text)[1].resolve())]
    # The page may be in a directory that is a source.
    return [stamp for stamp in stamps if not any(Path(stamp[0]).is_relative_to(path) for path in made)]


def _command_line() -> str:
    # `app.run` passes the words of the command line as the object of the context.
    return shlex.join(["ckpt-probe", *(click.get_current_context().obj or [])])
