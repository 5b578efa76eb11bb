"""`ckpt-probe report`."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import DIRECTORY, FILE, POSITIVE, WHOLE, require_used
from ckpt_probe.cli.options import flag, option, option_group, setting_group, verb
from ckpt_probe.cli.output import bars, say
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from ckpt_probe.reporting.page import ReportSummary

EXAMPLE = """\b
Examples: ckpt-probe report dumps/digits paths/ab -o report.html
          ckpt-probe report plain=dumps/plain decay=dumps/decay -o runs.html --figures figures"""


@verb("report", EXAMPLE)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES...")
@option_group(
    "Output",
    option("-o --out", "FILE", "HTML file to write the page to.", FILE),
    option(
        "--figures",
        "DIR",
        "Also draw the plots into this directory, one file per plot.",
        DIRECTORY,
    ),
    "splits",
    flag("--overwrite", "Replace an existing page and existing figures."),
    flag("--follow", "Write the page again whenever a source changes; ends with Ctrl-C."),
)
@setting_group(
    "--set",
    "Less common settings",
    option("title", "TEXT", "Heading of the page.", str, "What happened in these runs"),
    option("data", "NAME", "Data of the dumps, to show pictures of the worst examples."),
    "data_arguments",
    option("workers", "N", "Number of processes to use.", POSITIVE, 1),
    option(
        "labels",
        "FILE",
        "Text file with the names of the classes, one per line.",
        FILE,
    ),
    option(
        "figure_format",
        "NAME",
        "Format of the files in --figures: svg, pdf or png.",
        ("svg", "pdf", "png"),
        "svg",
    ),
    option("mir_rows", "N", "Number of stored rows for MIR between layers; 0 leaves it out.", WHOLE, 256),
    "memory cache every",
)
def command(
    sources: tuple[str, ...], out: Path | None, follow: bool, every: float, overwrite: bool, **options: Any
) -> None:
    """Write a page of all results: metrics, matrices, spectra, classes, paths, planes and their provenance.

    SOURCES are dumps (a file or a directory; analyzed, with the cache of analyze), records (.jsonl files, or the
    directory of a run), and the directories of paths and planes; their content decides which. NAME=SOURCE sets the
    name in the page. The page is a single file that contains its data and loads nothing; it opens in any browser.
    """
    require_used(follow, "--follow", "every")

    from ckpt_probe.reporting.page import report

    figures, options["command"] = options["figures"], _command_line()

    def write(*, overwrite: bool) -> "ReportSummary":
        with bars() as progress:
            summary = report(sources, out, overwrite=overwrite, progress=progress, **options)
            if figures is not None:
                say(f"{figures}: {len(summary.figures)} figures")
            if summary.size is not None:
                say(f"{out}: {summary.sections} sections, {summary.size / 1e6:.1f} MB; open it in a browser")
        return summary

    if not follow:
        write(overwrite=overwrite)
        return
    made = [path.resolve() for path in (out, figures) if path is not None]
    with suppress(KeyboardInterrupt):
        _follow(sources, write, made, every, overwrite=overwrite)


def _follow(
    sources: tuple[str, ...], write: "Callable[..., ReportSummary]", made: list[Path], every: float, *, overwrite: bool
) -> None:
    """Write the page whenever a source changes, and say which events are new in it."""
    from ckpt_probe.findings.findings import EventWatch

    drawn, watch = None, EventWatch()
    while True:
        # Read the stamps before the sources, so that a change while they are read is drawn in the next round.
        stamps = _stamps(sources, made)
        if stamps != drawn:
            drawn = stamps
            try:
                summary = write(overwrite=overwrite)
            except DataError as error:
                say(f"{error}; waiting for a change")
            else:
                overwrite = True
                events = [
                    ((f"{run} {bar.row}", bar.kind, bar.start, bar.stop), f"{run}: {bar.label}")
                    for run, bar in summary.events
                ]
                for sentence in watch.unreported(events):
                    say(f"event: {sentence}")
        time.sleep(every)


def _stamps(sources: tuple[str, ...], made: list[Path]) -> list[tuple[str, int, int]]:
    from ckpt_probe.files import stamp_of
    from ckpt_probe.groups import named_paths

    stamps = [stamp for text in sources for path in named_paths(text)[1] for stamp in stamp_of(Path(path).resolve())]
    # The page may be in a directory that is a source.
    return [stamp for stamp in stamps if not any(Path(stamp[0]).is_relative_to(path) for path in made)]


def _command_line() -> str:
    # `app.run` passes the words of the command line as the object of the context.
    return shlex.join(["ckpt-probe", *(click.get_current_context().obj or [])])
