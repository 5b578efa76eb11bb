"""Write the page and the figures of a report from its sources: the function behind `report`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import refuse_existing
from ckpt_probe.findings.sentences import read_findings, read_group
from ckpt_probe.groups import Sources
from ckpt_probe.keywords import as_sequence
from ckpt_probe.moments import MEMORY
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.reporting.comparison import difference_sentences
from ckpt_probe.reporting.conditions import (
    RecordsSource,
    by_file,
    conditions_of,
    labelled,
    open_conditions,
    read_conditions,
)
from ckpt_probe.reporting.formats import write_event_files, write_records
from ckpt_probe.reporting.material import MIR_ROWS, TITLE, Material, ReportOptions, read_source
from ckpt_probe.reporting.page.document import write_page
from ckpt_probe.reporting.plots.description import Bar, IntervalPlot
from ckpt_probe.reporting.plots.metrics import axis_along
from ckpt_probe.reporting.provenance import origin_of, without_shared
from ckpt_probe.reporting.reading import read_path, read_plane, read_supported
from ckpt_probe.reporting.runs import common_axis, placed, positions
from ckpt_probe.reporting.sections import DIFFERENCES, FINDINGS, Contents, Track, folded, sections_of
from ckpt_probe.reporting.sources import Source, class_names, open_sources


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


def report(
    sources: Sources,
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
    chosen = as_sequence(splits) or ()
    options = ReportOptions(title, names, chosen, memory, workers, cache, mir_rows, data, data_arguments)
    contents = gather(open_sources(sources), options, progress)
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


def export(
    records: RecordsSource | Mapping[str, RecordsSource],
    out: Path | str | None = None,
    *,
    tensorboard: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Mapping[str, Any]]:
    """Convert records to the formats of other programs: Parquet, CSV, event files of TensorBoard.

    Args:
        records: Records, files of records (.jsonl), dumps or directories of runs, or several; NAME=FILE or a mapping
            names them. If there are several, entries `group` and `seed` of the records name them.
        out: File to write: Parquet or CSV by its suffix, else JSON Lines.
        tensorboard: Directory for event files, one run per split and per file of records.
        overwrite: Whether to replace an existing file and directory.
        progress: Receives messages and bars.

    Returns:
        The records.

    Raises:
        UsageError: If there is no output, or one exists and `overwrite` is false.
        DataError: If records cannot be read, or do not fit a format.
    """
    if out is None and tensorboard is None:
        raise UsageError('export: choose an output: `out="records.parquet"`, `tensorboard="DIR"`, or both')
    progress, sources, files = progress or NullProgress(), as_sequence(records) or (), {}
    if isinstance(records, Mapping) or not all(isinstance(source, Path | str) for source in sources):
        conditions = conditions_of(records)
    else:
        files = open_conditions([*map(str, sources)])
        conditions = read_conditions(files, progress)
    if tensorboard is not None:
        values, notes = write_event_files(by_file(conditions), tensorboard, overwrite=overwrite, progress=progress)
        for note in notes:
            progress.message(note)
        progress.message(f"{tensorboard}: {values} values; view them with: tensorboard --logdir {tensorboard}")
    rows = list(labelled(conditions, files))
    if out is not None:
        write_records(rows, Path(out), overwrite=overwrite)
        progress.message(f"{out}: {len(rows)} records")
    return rows


def gather(
    sources: Sequence[Source], options: ReportOptions | None = None, progress: Progress | None = None
) -> Contents:
    """Read all sources and collect the contents of a report about them.

    Dumps are analyzed, with the cache of records.

    Args:
        sources: Sources of the report.
        options: Options of the report; None for the defaults.
        progress: Progress to report to.

    Returns:
        The contents, for the page or for figures.

    Raises:
        DataError: If no source can be read, or none contains anything that can be shown. A damaged one among others
            is left out, with a message and a sentence in the report.
    """
    options, progress = options or ReportOptions(), DeduplicatedProgress(progress or NullProgress())
    contents, origins = Material(), []
    with progress.task("sources", len(sources), "sources") as bar:
        for source in sources:
            try:
                read_source(source, contents, options, progress)
                origins.append(origin_of(source))
            except DataError as error:
                if len(sources) == 1:
                    raise
                contents.left_out[source.name] = str(error)
                progress.message(f"left out: {error}")
            bar.advance()
    if not (contents.runs or contents.paths or contents.planes or contents.weights):
        raise DataError(f"nothing to report: {listed(list(contents.left_out.values()), most=3)}")
    axis = common_axis(contents.runs) if contents.runs else "step"
    tracks = [
        Track(run.name, tuple(run.checkpoints), tuple(positions(placed(run, axis) or run, axis)))
        for run in contents.runs
    ]
    sections = list(sections_of(contents, axis, options))
    notes = [note for section in sections for note in section.notes]
    sections = [section for section in sections if section.plots]
    reading = tuple((about, tuple(sentences)) for about, sentences in _reading(contents) if sentences)
    if not (sections or reading):
        reasons = listed(notes, most=3) or "the sources have no number by step, path or class"
        raise DataError(f"nothing to show: {reasons}")
    if contents.has_groups:
        sections = [folded(section) if section.key not in (DIFFERENCES, FINDINGS) else section for section in sections]
    return Contents(
        options.title,
        reading,
        tuple(sections),
        axis_along(axis, sorted({value for track in tracks for value in track.positions if value is not None})),
        tuple(tracks),
        *(without_shared(origins) if contents.has_groups else (tuple(origins), {})),
    )


def _reading(contents: Material) -> Iterable[tuple[str, list[str]]]:
    if contents.differences:
        yield "groups", difference_sentences(contents.differences)
    for group, findings in contents.findings.items() if contents.has_groups else ():
        yield group, read_group(findings)
    first = {name: [f"Left out: {message}"] for name, message in contents.left_out.items()}
    for name, weights in contents.weights.items():
        first.setdefault(name, []).extend(text for text in weights.sentences if text)
    for run in [] if contents.has_groups else contents.runs:
        about_run = [*read_findings(contents.findings[run.name]), *read_supported(run.records)]
        yield run.name, [*first.pop(run.name, []), *about_run]
    yield from first.items()
    for name, path in contents.paths.items():
        yield name, read_path(path.summary, path.plan.get("path"))
    for name, plane in contents.planes.items():
        yield name, read_plane(plane.summary, plane.marks)
