"""Contents of a report in order: sentences, sections of plots, and provenance of the sources."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ckpt_probe.errors import DataError
from ckpt_probe.findings.sentences import read_findings, read_group
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.reporting.differences import difference_sentences
from ckpt_probe.reporting.material import Material, ReportOptions, read_source
from ckpt_probe.reporting.plots.description import Axis
from ckpt_probe.reporting.plots.metrics import axis_along
from ckpt_probe.reporting.provenance import Origin, origin_of, without_shared
from ckpt_probe.reporting.reading import read_path, read_plane, read_supported
from ckpt_probe.reporting.runs import ORDER, Run, common_axis, positions
from ckpt_probe.reporting.sections import DIFFERENCES, FINDINGS, Section, folded, sections_of
from ckpt_probe.reporting.sources import Source


@dataclass(frozen=True)
class Track:
    """Run on the slider: its checkpoints and their positions on the common axis, None if unknown."""

    run: str
    checkpoints: tuple[str, ...]
    positions: tuple[float | None, ...]


@dataclass(frozen=True)
class Contents:
    """Contents of a report.

    Attributes:
        title: Heading.
        reading: Sentences by the name of their source.
        sections: The sections.
        axis: Axis of the slider.
        tracks: Runs on the slider.
        origins: Provenance of the sources; that of several has only the facts in which they differ.
        shared: Facts that are the same for all sources.
        notes: Notes on missing parts.
    """

    title: str
    reading: tuple[tuple[str, tuple[str, ...]], ...]
    sections: tuple[Section, ...]
    axis: Axis
    tracks: tuple[Track, ...]
    origins: tuple[Origin, ...]
    shared: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        DataError: If a source cannot be read, or contains nothing that can be shown.
    """
    options, progress = options or ReportOptions(), DeduplicatedProgress(progress or NullProgress())
    contents, origins = Material(), []
    with progress.task("sources", len(sources), "sources") as bar:
        for source in sources:
            read_source(source, contents, options, progress)
            origins.append(origin_of(source))
            bar.advance()
    if not (contents.runs or contents.paths or contents.planes or contents.weights):
        raise DataError("nothing to report")
    axis = common_axis(contents.runs) if contents.runs else "step"
    tracks = [Track(run.name, tuple(run.checkpoints), tuple(_slider_positions(run, axis))) for run in contents.runs]
    sections = [section for section in sections_of(contents, axis, options.data) if section.plots]
    reading = tuple((about, tuple(sentences)) for about, sentences in _reading(contents) if sentences)
    if not (sections or reading):
        raise DataError("nothing to show: the sources have no number by step, path or class")
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


def _slider_positions(run: Run, axis: str) -> Iterable[float | None]:
    return map(float, range(len(run.checkpoints))) if axis == ORDER else positions(run, axis)


def _reading(contents: Material) -> Iterable[tuple[str, list[str]]]:
    if contents.differences:
        yield "groups", difference_sentences(contents.differences)
    for group, findings in contents.findings.items() if contents.has_groups else ():
        yield group, read_group(findings)
    verdicts = {name: [text for text in weights.sentences if text] for name, weights in contents.weights.items()}
    for run in [] if contents.has_groups else contents.runs:
        about_run = [*read_findings(contents.findings[run.name]), *read_supported(run.records)]
        yield run.name, [*verdicts.pop(run.name, []), *about_run]
    yield from verdicts.items()
    for name, path in contents.paths.items():
        yield name, read_path(path.summary, path.plan.get("path"))
    for name, plane in contents.planes.items():
        yield name, read_plane(plane.summary, plane.marks)
