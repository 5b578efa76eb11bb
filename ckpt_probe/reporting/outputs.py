"""Write the page and the figures of a report, and a figure of metrics: the functions behind `report` and `plot`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.errors import UsageError
from ckpt_probe.files import refuse_existing
from ckpt_probe.keywords import as_sequence, checked_keywords
from ckpt_probe.moments import MEMORY
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.contents import gather
from ckpt_probe.reporting.material import MIR_ROWS, TITLE, ReportOptions
from ckpt_probe.reporting.page import write_page
from ckpt_probe.reporting.plots.description import Bar, IntervalPlot
from ckpt_probe.reporting.plots.examples import NamedData
from ckpt_probe.reporting.sources import class_names, open_sources


@dataclass(frozen=True)
class ReportSummary:
    """The result of `report`.

    Attributes:
        sections: Number of sections of the page.
        size: Size of the page in bytes; None if only figures were written.
        figures: Files of the figures.
        events: Intervals of events of every run: the run, the bar of the event.
    """

    sections: int
    size: int | None
    figures: tuple[Path, ...]
    events: tuple[tuple[str, Bar], ...] = ()


@checked_keywords
def report(
    sources: Path | str | Iterable[Path | str] | Mapping[str, Path | str],
    out: Path | str | None = None,
    *,
    figures: Path | str | None = None,
    figure_format: str = "svg",
    title: str = TITLE,
    labels: Path | str | Sequence[str] = (),
    splits: str | Sequence[str] | None = None,
    memory: int = MEMORY,
    mir_rows: int = MIR_ROWS,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    workers: int = 1,
    cache: bool = True,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> ReportSummary:
    """Write a page of all results: metrics, matrices, spectra, classes, paths, planes and their provenance.

    Args:
        sources: Dumps (a file or a directory), records (files, or the directory of a run), and directories of paths
            and planes, recognised by their content; a mapping names them.
        out: HTML file of the page, which contains all its data.
        figures: Directory to draw the plots into, one file per plot.
        figure_format: Format of the figures: "svg", "pdf" or "png".
        title: Heading of the page.
        labels: Names of the classes, or a text file with one name per line; those in the dumps if empty.
        splits: Splits of the dumps to analyze; all if None.
        memory: Memory limit for the analysis of one dump, in bytes.
        mir_rows: Number of stored rows for MIR between layers; 0 leaves it out.
        data: Name of the data of the dumps, as for `extract`, to show names and small pictures of the worst examples.
        data_arguments: Arguments of the data; those in the dumps if None and they name the same data.
        workers: Number of processes that analyze dumps.
        cache: Whether to use the cache of records.
        overwrite: Whether to replace an existing page and existing figures.
        command: Command line that made the report, shown with its provenance.
        progress: Receives messages and bars.

    Raises:
        UsageError: If neither `out` nor `figures` is given, a file exists and `overwrite` is false, or two sources
            have the same name.
        DataError: If a source cannot be read.
    """
    if out is None and figures is None:
        raise UsageError(
            'report: choose an output: `out="report.html"` for a page, `figures="DIR"` for figures, or both'
        )
    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
    progress = progress or NullProgress()
    names = class_names(Path(labels)) if isinstance(labels, Path | str) else tuple(labels)
    named_data = NamedData(data, data_arguments)
    options = ReportOptions(title, names, as_sequence(splits) or (), memory, workers, cache, mir_rows, named_data)
    contents = gather(open_sources(_named(sources)), options, progress)
    files: list[Path] = []
    if figures is not None:
        from ckpt_probe.reporting.figures.export import draw_contents

        files = draw_contents(contents, Path(figures), figure_format, overwrite=overwrite, progress=progress)
    size = None if out is None else write_page(contents, Path(out), command=command, overwrite=overwrite)
    events = [
        (plot.title, bar)
        for section in contents.sections
        for plot in section.plots
        if isinstance(plot, IntervalPlot)
        for bar in plot.bars
    ]
    return ReportSummary(len(contents.sections), size, tuple(files), tuple(events))


def _named(sources: Path | str | Iterable[Path | str] | Mapping[str, Path | str]) -> list[str]:
    if isinstance(sources, Mapping):
        return [f"{name}={path}" for name, path in sources.items()]
    return [str(source) for source in as_sequence(sources) or ()]
