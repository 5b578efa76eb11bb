"""Contents of a report in order: sentences, sections of plots, and provenance of the sources."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.analysis import Comparison, Record, Settings, read_series
from ckpt_probe.analysis.records import by_run
from ckpt_probe.analysis.similarity import layer_similarities, step_similarities, stored_rows_of_series
from ckpt_probe.dumps import open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.findings import Findings
from ckpt_probe.findings.sentences import findings_of_group, findings_of_run, read_findings, read_group
from ckpt_probe.paths import PlaneResult
from ckpt_probe.predictions import Predictions, read_predictions
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress, Task
from ckpt_probe.reporting.differences import (
    TOP,
    difference_sentences,
    difference_table,
    differences,
    grouped,
    has_groups,
)
from ckpt_probe.reporting.plots.description import Axis, Plot
from ckpt_probe.reporting.plots.events import event_plots
from ckpt_probe.reporting.plots.examples import (
    NO_DATA,
    NamedData,
    disagreement_maps,
    history_maps,
    run_table,
    step_plots,
    worst_table,
)
from ckpt_probe.reporting.plots.layers import LayerSimilarity, layer_maps, separation_plots, similarity_plots
from ckpt_probe.reporting.plots.metrics import axis_along, metric_plots
from ckpt_probe.reporting.plots.paths import contour_plots, path_plots
from ckpt_probe.reporting.plots.portraits import class_table, matrix_plots, spectrum_plots
from ckpt_probe.reporting.plots.weights import (
    GROUPS,
    WeightsContents,
    block_maps,
    is_of_weights,
    spectrum_lines,
    trajectory_plot,
)
from ckpt_probe.reporting.provenance import Origin, origin_of, without_shared
from ckpt_probe.reporting.reading import read_path as read_path_aloud
from ckpt_probe.reporting.reading import read_plane as read_plane_aloud
from ckpt_probe.reporting.reading import read_supported
from ckpt_probe.reporting.runs import ORDER, Run, common_axis, positions, run_of_readings, run_of_records
from ckpt_probe.reporting.sources import (
    DUMP,
    PATH,
    PLANE,
    RECORDS,
    WEIGHTS,
    PathContents,
    Source,
    read_path,
    read_plane,
    records_of,
)
from ckpt_probe.scheduling import Workers
from ckpt_probe.series import Member
from ckpt_probe.trajectories.records import WeightOptions
from ckpt_probe.trajectories.survey import survey_weights, verdict_of

TITLE = "What happened in these runs"
"""Default heading of the page."""

DIFFERENCES, FINDINGS = "differences", "findings"
"""Keys of the sections whose plots are open on a page that is drawn by group; all others are folded."""

MIR_ROWS = 256
"""Default number of rows for MIR between layers; 10 layers take 0.3 s with 256 rows and 20 s with 2,048."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        title: Heading of the page.
        class_names: Names of classes 0, 1, …; empty for those of the dumps.
        splits: Splits to analyze; empty for all.
        memory: Memory limit for the analysis of one dump, in bytes.
        workers: Number of processes that analyze dumps.
        cache: Whether to use the cache of records.
        mir_rows: Number of stored rows for MIR between layers; 0 leaves it out.
        data: Data of the dumps, to show names and pictures of examples.
    """

    title: str = TITLE
    class_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    memory: int = Settings().memory
    workers: int = 1
    cache: bool = True
    mir_rows: int = MIR_ROWS
    data: NamedData = NO_DATA

    @property
    def settings(self) -> Settings:
        """Settings of the analysis of dumps, with everything that a report shows."""
        return Settings(per_class=True, portrait=True, errors=True, memory=self.memory, layers=True)


@dataclass(frozen=True)
class Group:
    """Plots under one heading ("" for no heading); `folded` hides them until they are asked for."""

    title: str
    plots: tuple[Plot, ...]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """Section of a report: key, title, a sentence about its contents, groups of plots, and notes on missing parts."""

    key: str
    title: str
    lead: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def plots(self) -> list[Plot]:
        """Return the plots of all groups."""
        return [plot for group in self.groups for plot in group.plots]


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


@dataclass
class _SourceContents:
    """Contents of all sources."""

    runs: list[Run] = field(default_factory=list)
    similar: list[LayerSimilarity] = field(default_factory=list)
    weights: dict[str, WeightsContents] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Reasons for missing similarities of layers."""

    predictions: list[list[Predictions]] = field(default_factory=list)
    """Predictions of each run, one for each split."""

    without_predictions: list[str] = field(default_factory=list)
    paths: dict[str, PathContents] = field(default_factory=dict)
    planes: dict[str, PlaneResult] = field(default_factory=dict)

    @cached_property
    def findings(self) -> dict[str, Findings]:
        """Return the findings about the main metrics of each run, or of each group if the runs belong to groups."""
        if not has_groups(self.runs):
            return {run.name: findings_of_run(run.name, run.records) for run in self.runs}
        return {
            group: findings_of_group(group, {run.seed or run.name: run.records for run in members})
            for group, members in grouped(self.runs).items()
        }


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
    contents, origins = _SourceContents(), []
    with progress.task("sources", len(sources), "sources") as bar:
        for source in sources:
            _read(source, contents, options, progress)
            origins.append(origin_of(source))
            bar.advance()
    if not (contents.runs or contents.paths or contents.planes or contents.weights):
        raise DataError("nothing to report")
    axis = common_axis(contents.runs) if contents.runs else "step"
    tracks = [Track(run.name, tuple(run.checkpoints), tuple(_slider_positions(run, axis))) for run in contents.runs]
    sections = [section for section in _sections(contents, axis, options.data) if section.plots]
    reading = tuple((about, tuple(sentences)) for about, sentences in _reading(contents) if sentences)
    if not (sections or reading):
        raise DataError("nothing to show: the sources have no number by step, path or class")
    if has_groups(contents.runs):
        sections = [_folded(section) if section.key not in (DIFFERENCES, FINDINGS) else section for section in sections]
    return Contents(
        options.title,
        reading,
        tuple(sections),
        axis_along(axis, sorted({value for track in tracks for value in track.positions if value is not None})),
        tuple(tracks),
        *(without_shared(origins) if has_groups(contents.runs) else (tuple(origins), {})),
    )


def _read(source: Source, contents: _SourceContents, options: ReportOptions, progress: Progress) -> None:
    if source.kind == PATH:
        contents.paths[source.name] = read_path(source)
    elif source.kind == PLANE:
        contents.planes[source.name] = read_plane(source)
    elif source.kind == RECORDS:
        records = records_of(source)
        groups = [record for record in records if any(record.get(name) is not None for name in GROUPS)]
        if any(map(is_of_weights, records)):
            network = [record for record in records if record not in groups]
            contents.weights[source.name] = WeightsContents(network, groups)
        elif source.checkpoints is not None:
            verdict = verdict_of(source.checkpoints, options.cache, progress)
            contents.weights[source.name] = WeightsContents((), (), sentences=(verdict,))
        others = [record for record in records if record not in groups] if groups else records
        for (group, seed), of_run in by_run(others).items():
            name = source.name if group is None else f"{group}/{seed}" if seed else group
            run = run_of_records(name, of_run, options.class_names)
            position = (source.group, source.seed) if group is None else (group if seed else None, seed)
            contents.runs.append(replace(run, group=position[0], seed=position[1]))
    elif source.kind == WEIGHTS:
        network = _survey(source.name, source.path, contents, options, progress)
        run = run_of_records(source.name, network, options.class_names)
        contents.runs.append(replace(run, group=source.group, seed=source.seed))
    elif source.kind == DUMP:
        readings = list(
            read_series(
                source.path,
                options.settings,
                splits=options.splits or None,
                workers=Workers(options.workers),
                cache=options.cache,
                progress=progress,
            )
        )
        names = options.class_names or _class_names(source.path)
        run = replace(run_of_readings(source.name, readings, names), group=source.group, seed=source.seed)
        contents.runs.append(run)
        if run.layered:
            _compare(source, run, contents, options.mir_rows, progress)
        try:
            contents.predictions.append(
                read_predictions(source.path, options.splits or None, run=source.name, progress=progress)
            )
        except DataError as error:
            contents.without_predictions.append(str(error))


def _survey(
    name: str, path: Path, contents: _SourceContents, options: ReportOptions, progress: Progress
) -> list[Record]:
    """Measure the weights of a series for the report, and return the records of the network."""
    survey = survey_weights(path, WeightOptions(workers=Workers(options.workers), cache=options.cache), progress)
    contents.weights[name] = WeightsContents(survey.network, survey.blocks, survey.spectra, survey.sentences)
    return survey.network


def _compare(source: Source, run: Run, contents: _SourceContents, mir_rows: int, progress: Progress) -> None:
    members = open_dump_series(source.path)
    splits = list(dict.fromkeys(str(record["split"]) for record in run.layered))
    with progress.task("similarities of layers", len(splits) * len(members), "dumps") as bar:
        for split in splits:
            try:
                contents.similar.append(_similarities(source, run, members, split, mir_rows, bar))
            except DataError as error:
                contents.missing.append(str(error))


def _similarities(
    source: Source, run: Run, members: Sequence[Member], split: str, mir_rows: int, bar: Task
) -> LayerSimilarity:
    stored, names = stored_rows_of_series([member.path for member in members], split)
    layers = tuple(stored[0].layers)
    cka, mir = [], []
    for rows_of_dump in stored:
        cka.append(layer_similarities(rows_of_dump, split, "cka").values)
        if mir_rows:
            mir.append(layer_similarities(rows_of_dump.thinned(mir_rows), split, "mir").values)
        bar.advance()
    by_step = {
        layer: np.array(step_similarities(stored, names, split, "cka", layer).values, dtype=float)
        for layer in (layers if len(stored) > 1 else ())
    }
    rows = len(stored[0].indices)
    return LayerSimilarity(
        source.name,
        split,
        layers,
        tuple(run.checkpoints.index(member.name) for member in members),
        tuple(names),
        np.array(cka, dtype=float),
        np.array(mir, dtype=float) if mir else None,
        rows,
        min(rows, mir_rows),
        by_step,
    )


def _class_names(path: Path) -> tuple[str, ...]:
    # None for data without named classes.
    with open_dump(open_dump_series(path)[0].path) as dump:
        return dump.class_names or ()


def _slider_positions(run: Run, axis: str) -> Iterable[float | None]:
    return map(float, range(len(run.checkpoints))) if axis == ORDER else positions(run, axis)


def _sections(contents: _SourceContents, axis: str, data: NamedData) -> Iterable[Section]:
    groups, notes = metric_plots(contents.runs, axis)
    if has_groups(contents.runs) and (ranked := differences(contents.runs)):
        yield _differences(ranked, groups)
        groups = [(title, [plot for plot in plots if plot.key not in _top(ranked)]) for title, plots in groups]
    lead = "When metrics change: an interval of steps for each event, the earliest onset first."
    findings = Section(FINDINGS, "Findings", lead, (Group("", tuple(event_plots(contents.findings))),))
    if has_groups(contents.runs):
        yield findings
    yield Section(
        "metrics",
        "Metrics",
        "Every number of every checkpoint. Solid and filled: train; dashed and hollow: test; dotted: at "
        "collapse; shaded: 95 % intervals.",
        tuple(Group(title, tuple(plots)) for title, plots in groups if plots),
        tuple(notes),
    )
    if not has_groups(contents.runs):
        yield findings
    matrices, notes = _by_group(matrix_plots, contents.runs)
    lead = "Cosines between the directions of classes, at the checkpoint of the slider."
    yield Section("cosines", "Class means and classifier", lead, (Group("", tuple(matrices)),), tuple(notes))
    spectra, notes = _by_group(spectrum_plots, contents.runs)
    lead = "Eigenvalues of each Gram matrix divided by its size: at the checkpoint of the slider, and over the run."
    yield Section("spectra", "Spectra", lead, (Group("", tuple(spectra)),), tuple(notes))
    table, notes = class_table(contents.runs)
    plots = () if table is None else (table,)
    yield Section(
        "classes", "Classes", "Numbers of each class. Click a heading to sort.", (Group("", plots),), tuple(notes)
    )
    lead = "Layers of every checkpoint: metrics by layer and step, similarity of layers, separation of classes."
    groups = (
        Group("By layer and checkpoint", tuple(layer_maps(contents.runs))),
        Group("Similarity of layers", tuple(similarity_plots(contents.similar))),
        Group("Separation by depth", tuple(separation_plots(contents.runs))),
    )
    yield Section("layers", "Layers", lead, tuple(group for group in groups if group.plots), tuple(contents.missing))
    yield _examples(contents, axis, data)
    lead = "What the files of the checkpoints say by themselves: the audit, the motion and the spectra of the weights."
    yield Section("weights", "Weights", lead, tuple(_weight_groups(contents.weights)))
    lead = "Loss and error between two checkpoints, and how far they rise above the chord: the barrier."
    paths = tuple(Group(title, tuple(plots)) for title, plots in path_plots(contents.paths))
    yield Section("paths", "Paths", lead, paths, tuple(_without_metrics(contents.paths)))
    planes = tuple(Group(name, tuple(contour_plots(plane, f"plane-{name}"))) for name, plane in contents.planes.items())
    yield Section("planes", "Planes", "The loss over a plane of weights, with the checkpoints in it.", planes)


def _weight_groups(weights: dict[str, WeightsContents]) -> Iterable[Group]:
    for name, contents in weights.items():
        trajectory = trajectory_plot(name, contents.network)
        plots = {
            "By block and checkpoint": block_maps(
                name, contents, "weights" if len(weights) == 1 else f"weights-{name}"
            ),
            "Trajectory": [] if trajectory is None else [trajectory],
            "Spectra of weight matrices": spectrum_lines(name, contents),
        }
        for title, drawn in plots.items():
            if drawn:
                yield Group(title if len(weights) == 1 else f"{name}: {title.lower()}", tuple(drawn))


def _examples(contents: _SourceContents, axis: str, data: NamedData) -> Section:
    series = [each for run in contents.predictions for each in run if len(each.members) > 1]
    left_out = [reason for run in contents.predictions for each in run for reason in each.left_out.values()]
    pairs, notes_on_pairs = run_table(contents.predictions)
    worst, notes_on_samples = worst_table(series, data)
    by_class, notes_on_classes = history_maps(series)
    steps, notes_on_steps = step_plots(series, axis)
    matrices, notes_on_matrices = disagreement_maps(series)
    groups = (
        Group("By class", tuple(by_class)),
        Group("By example", () if worst is None else (worst,)),
        Group("From checkpoint to checkpoint", tuple(steps)),
        Group("Every two checkpoints", tuple(matrices)),
        Group("Between runs", () if pairs is None else (pairs,)),
    )
    notes = (*left_out, *notes_on_classes, *notes_on_samples, *notes_on_steps, *notes_on_matrices, *notes_on_pairs)
    lead = "Which rows were learned when and forgotten how often, and how much the predictions of networks differ."
    present = tuple(group for group in groups if group.plots)
    return Section("examples", "Examples", lead, present, (*contents.without_predictions, *notes))


def _differences(ranked: Sequence[Comparison], groups: Sequence[tuple[str, Sequence[Plot]]]) -> Section:
    """Return the section of the differences between groups: their table, and the plots of the clearest ones."""
    plots = {plot.key: plot for _, of_group in groups for plot in of_group}
    clearest = tuple(plots[key] for key in _top(ranked) if key in plots)
    lead = "How the groups differ at the end, the most clearly separated metrics first: mean and range over seeds."
    return Section(DIFFERENCES, "Differences", lead, (Group("", (difference_table(ranked),)), Group("", clearest)))


def _folded(section: Section) -> Section:
    """Return a section whose plots are hidden until they are asked for."""
    groups = (replace(group, title=group.title or section.title, folded=True) for group in section.groups)
    return replace(section, groups=tuple(groups))


def _top(ranked: Sequence[Comparison]) -> list[str]:
    """Return the keys of the plots of the most clearly separated metrics."""
    return [f"metric-{name}" for name in list(dict.fromkeys(each.metric for each in ranked))[:TOP]]


def _by_group(describe: Callable[[Sequence[Run]], tuple[list[Any], list[str]]], runs: Sequence[Run]) -> Any:
    """Describe plots of each group of runs beside each other; those of all runs together without groups."""
    if not has_groups(runs):
        return describe(runs)
    described = {group: describe(members) for group, members in grouped(runs).items()}
    pairs = [
        replace(plot, key=f"{plot.key}-{group}", title=f"{plot.title}: {group}")
        for group, (plots, _) in described.items()
        for plot in plots
    ]
    # The plots of one matrix or spectrum follow each other.
    kinds = list(dict.fromkeys(plot.title.rpartition(": ")[0] for plot in pairs))
    pairs.sort(key=lambda plot: kinds.index(plot.title.rpartition(": ")[0]))
    return pairs, [note for _, notes in described.values() for note in notes]


def _without_metrics(paths: dict[str, PathContents]) -> Iterable[str]:
    if paths:
        yield "metrics along a path are in its points.jsonl; `plot` draws them"
    for name, path in paths.items():
        if not path.result:
            yield f"{name}: not finished; only its computed points are drawn"


def _reading(contents: _SourceContents) -> Iterable[tuple[str, list[str]]]:
    by_group = has_groups(contents.runs)
    if by_group and (ranked := differences(contents.runs)):
        yield "groups", difference_sentences(ranked)
    for group in contents.findings if by_group else ():
        yield group, read_group(contents.findings[group])
    verdicts = {name: [text for text in weights.sentences if text] for name, weights in contents.weights.items()}
    for run in [] if by_group else contents.runs:
        about_run = [*read_findings(contents.findings[run.name]), *read_supported(run.records)]
        yield run.name, [*verdicts.pop(run.name, []), *about_run]
    yield from verdicts.items()
    for name, path in contents.paths.items():
        yield name, read_path_aloud(path.summary, path.plan.get("path"))
    for name, plane in contents.planes.items():
        yield name, read_plane_aloud(plane.summary, plane.marks)
