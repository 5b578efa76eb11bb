"""`ckpt-probe report`."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.options import byte_count
from ckpt_probe.errors import DataError, UsageError

if TYPE_CHECKING:
    from ckpt_probe.report.contents import Wishes

EXAMPLE = """\b
Examples: ckpt-probe report dumps/digits paths/ab -o report.html
          ckpt-probe report plain=dumps/plain decay=dumps/decay -o runs.html --figures figures --format pdf"""
EVERY = 5.0
"""Seconds between two looks of --follow."""
FORMATS = ("svg", "pdf", "png")


@click.command("report", epilog=EXAMPLE)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES...")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page, one HTML file.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also draw the same plots into this directory, one file each.",
)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="svg", show_default=True, help="Format of the figures."
)
@click.option("--title", default="What happened in these runs", show_default=True, help="Heading of the page.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Names of the classes, one a line.",
)
@click.option("--split", "splits", multiple=True, help="A split of the dumps to analyze, all where none is named.")
@click.option("--memory", default="2GiB", show_default=True, help="What moments and matrices of one dump may take.")
@click.option(
    "--mir-rows",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Of how many kept rows MIR between layers is computed; 0 leaves it out.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Dumps at a time.")
@click.option("--no-cache", is_flag=True, help="Analyze every dump anew, and keep nothing beside them.")
@click.option("--overwrite", is_flag=True, help="Replace the page and the figures where they exist.")
@click.option("--follow", is_flag=True, help="Draw it again whenever a source changes; ends with Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With --follow: how often to look, every 5 seconds by default.",
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
    """Make one page of everything known: metrics, matrices, spectra, classes, paths, planes, and where it comes from.

    SOURCES are dumps (a file or a directory; analyzed, with the cache of analyze), records (.jsonl files, or the
    directory of a run), and the directories of paths and planes; what each is is told by its content. NAME=SOURCE
    names it. The page is one file that holds its data and asks for nothing else; it opens in any browser.
    """
    from ckpt_probe.files import refuse_existing

    if out is None and figures is None:
        raise UsageError("say where to: -o report.html for a page, --figures DIR for figures, or both")
    if every is not None and not follow:
        raise UsageError("--every needs --follow")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    size = byte_count(memory)

    from ckpt_probe.report.contents import Wishes
    from ckpt_probe.report.sources import class_names

    names = class_names(labels) if labels is not None else ()
    wishes = Wishes(title, names, splits, size, workers, not no_cache, mir_rows)
    write = partial(_write, sources, wishes, out, figures, kind)
    if not follow:
        write(overwrite=overwrite)
        return
    made = [place.resolve() for place in (out, figures) if place is not None]
    with suppress(KeyboardInterrupt):
        _follow(sources, write, made, every or EVERY, overwrite=overwrite)


def _write(
    sources: tuple[str, ...], wishes: "Wishes", out: Path | None, figures: Path | None, kind: str, *, overwrite: bool
) -> None:
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.report.contents import gather
    from ckpt_probe.report.sources import open_sources

    with bars() as progress:
        contents = gather(open_sources(sources), wishes, progress)
        if figures is not None:
            from ckpt_probe.report.figures.export import draw_contents

            drawn = draw_contents(contents, figures, kind, overwrite=overwrite, progress=progress)
            say(f"{figures}: {len(drawn)} figures")
        if out is not None:
            from ckpt_probe.report.page import write_page

            size = write_page(contents, out, command=_own_words(), overwrite=overwrite)
            say(f"{out}: {len(contents.sections)} sections, {size / 1e6:.1f} MB; open it in a browser")


def _follow(
    sources: tuple[str, ...], write: Callable[..., None], made: list[Path], every: float, *, overwrite: bool
) -> None:
    from ckpt_probe.cli.console import say

    drawn = None
    while True:
        # Taken before the sources are read: what changes while they are is drawn the next time.
        found = _stamps(sources, made)
        if found != drawn:
            drawn = found
            try:
                write(overwrite=overwrite)
                overwrite = True
            except DataError as error:
                say(f"{error}; waiting until it changes")
        time.sleep(every)


def _stamps(sources: tuple[str, ...], made: list[Path]) -> list[tuple[str, int, int]]:
    from ckpt_probe.files import stamp_of
    from ckpt_probe.report.sources import named

    found = [one for text in sources for one in stamp_of(named(text)[1].resolve())]
    # The page may lie among what it shows.
    return [one for one in found if not any(Path(one[0]).is_relative_to(place) for place in made)]


def _own_words() -> str:
    # The line as it was given, which the application hands down.
    return shlex.join(["ckpt-probe", *(click.get_current_context().obj or [])])
