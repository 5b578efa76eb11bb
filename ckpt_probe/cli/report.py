"""`ckpt-probe report`."""

import shlex
from pathlib import Path

import click

from ckpt_probe.cli.options import byte_count
from ckpt_probe.errors import UsageError

EXAMPLE = """\b
Examples: ckpt-probe report dumps/digits paths/ab -o report.html
          ckpt-probe report plain=dumps/plain decay=dumps/decay -o runs.html --figures figures --format pdf"""
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
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Dumps at a time.")
@click.option("--no-cache", is_flag=True, help="Analyze every dump anew, and keep nothing beside them.")
@click.option("--overwrite", is_flag=True, help="Replace the page and the figures where they exist.")
def command(
    sources: tuple[str, ...],
    out: Path | None,
    figures: Path | None,
    kind: str,
    labels: Path | None,
    memory: str,
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
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    size = byte_count(memory)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.report.contents import Wishes, gather
    from ckpt_probe.report.sources import class_names, open_sources

    names = class_names(labels) if labels is not None else ()
    with bars() as progress:
        opened = open_sources(sources)
        contents = gather(opened, Wishes(title, names, splits, size, workers, not no_cache), progress)
        if figures is not None:
            from ckpt_probe.report.figures.export import draw_contents

            drawn = draw_contents(contents, figures, kind, overwrite=overwrite, progress=progress)
            say(f"{figures}: {len(drawn)} figures")
        if out is not None:
            from ckpt_probe.report.page import write_page

            size = write_page(contents, out, command=_own_words(), overwrite=overwrite)
            say(f"{out}: {len(contents.sections)} sections, {size / 1e6:.1f} MB; open it in a browser")


def _own_words() -> str:
    # The line as it was given, which the application hands down.
    return shlex.join(["ckpt-probe", *(click.get_current_context().obj or [])])
