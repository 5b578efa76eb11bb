"""Contents of a report: sections with plots under headings, sentences, provenance, and the axis of the slider."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import Any

from ckpt_probe.errors import DataError, listed
from ckpt_probe.findings.findings import read_findings, read_group
from ckpt_probe.progress import DeduplicatedProgress, NullProgress, Progress
from ckpt_probe.reporting.comparison import TOP, difference_sentences, difference_table, grouped
from ckpt_probe.reporting.findings import event_plot
from ckpt_probe.reporting.material import Material, read_source
from ckpt_probe.reporting.plots.description import Axis, Plot
from ckpt_probe.reporting.plots.examples import (
    disagreement_maps,
    history_maps,
    run_table,
    step_plots,
    worst_table,
)
from ckpt_probe.reporting.plots.layers import (
    block_maps,
    layer_maps,
    separation_plots,
    similarity_plots,
    spectrum_lines,
    trajectory_plot,
)
from ckpt_probe.reporting.plots.paths import contour_plots, path_plots
from ckpt_probe.reporting.plots.portraits import class_table, matrix_plots, spectrum_plots
from ckpt_probe.reporting.plots.runs import Run, axis_along, common_axis, metric_plots, placed, positions
from ckpt_probe.reporting.sources import Origin, PathContents, Source, origin_of, without_shared
from ckpt_probe.reporting.wording import read_path, read_plane, read_supported
from ckpt_probe.trajectories.series import WeightSurvey

OPEN = frozenset({"differences", "findings"})
"""Keys of the sections whose plots are open on a page that is drawn by group; all others are folded."""

Headed = Iterable[tuple[str, Iterable[Plot]]]
"""Plots under headings ("" for none)."""


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
    """

    title: str
    reading: tuple[tuple[str, tuple[str, ...]], ...]
    sections: tuple[Section, ...]
    axis: Axis
    tracks: tuple[Track, ...]
    origins: tuple[Origin, ...]
    shared: dict[str, str] = field(default_factory=dict)


def gather(sources: Sequence[Source], material: Material | None = None, progress: Progress | None = None) -> Contents:
    """Read all sources and collect the contents of a report about them.

    Dumps are analyzed, with the cache of records.

    Args:
        sources: Sources of the report.
        material: Options of the report, to which the sources are added; None for the defaults.
        progress: Progress to report to.

    Returns:
        The contents, for the page or for figures.

    Raises:
        DataError: If no source can be read, or none contains anything that can be shown. A damaged one among others
            is left out, with a message and a sentence in the report.
    """
    progress, material, origins = DeduplicatedProgress(progress or NullProgress()), material or Material(), []
    with progress.task("sources", len(sources), "sources") as bar:
        for source in sources:
            try:
                read_source(source, material, progress)
                origins.append(origin_of(source))
            except DataError as error:
                if len(sources) == 1:
                    raise
                material.left_out[source.name] = str(error)
                progress.message(f"left out: {error}")
            bar.advance()
    if not (material.runs or material.paths or material.planes or material.weights):
        raise DataError(f"nothing to report: {listed(list(material.left_out.values()), most=3)}")
    axis = common_axis(material.runs) if material.runs else "step"
    tracks = [
        Track(run.name, tuple(run.checkpoints), tuple(positions(placed(run, axis) or run, axis)))
        for run in material.runs
    ]
    described = [
        Section(key, title, lead, _groups(title, groups, material.has_groups and key not in OPEN), tuple(notes))
        for key, title, lead, groups, notes in _sections(material, axis)
    ]
    sections = tuple(section for section in described if section.plots)
    reading = tuple((about, tuple(sentences)) for about, sentences in _reading(material) if sentences)
    if not (sections or reading):
        notes = [note for section in described for note in section.notes]
        reasons = listed(notes, most=3) or "the sources have no number by step, path or class"
        raise DataError(f"nothing to show: {reasons}")
    return Contents(
        material.title,
        reading,
        sections,
        axis_along(axis, sorted({value for track in tracks for value in track.positions if value is not None})),
        tuple(tracks),
        *(without_shared(origins) if material.has_groups else (tuple(origins), {})),
    )


def _reading(material: Material) -> Iterable[tuple[str, list[str]]]:
    if material.differences:
        yield "groups", difference_sentences(material.differences)
    for group, findings in material.findings.items() if material.has_groups else ():
        yield group, read_group(findings)
    first = {name: [f"Left out: {message}"] for name, message in material.left_out.items()}
    for name, weights in material.weights.items():
        first.setdefault(name, []).extend(text for text in weights.sentences if text)
    for run in [] if material.has_groups else material.runs:
        about_run = [*read_findings(material.findings[run.name]), *read_supported(run.records)]
        yield run.name, [*first.pop(run.name, []), *about_run]
    yield from first.items()
    for name, path in material.paths.items():
        yield name, read_path(path.summary, path.plan.get("path"))
    for name, plane in material.planes.items():
        yield name, read_plane(plane.summary, plane.marks)


def _sections(material: Material, axis: str) -> Iterable[tuple[str, str, str, Headed, Iterable[str]]]:
    """Yield key, title, lead, plots and notes of every section in order, also of those without plots.

    Args:
        material: Material of the report.
        axis: Quantity on the x axis of runs.
    """
    groups, notes = metric_plots(material.runs, axis)
    if compared := material.differences:
        clearest = [f"metric-{name}" for name in list(dict.fromkeys(each.metric for each in compared))[:TOP]]
        plots = {plot.key: plot for _, of_group in groups for plot in of_group}
        headed = [("", [difference_table(compared)]), ("", [plots[key] for key in clearest if key in plots])]
        lead = "How the groups differ at the end, the most clearly separated metrics first: mean and range over seeds."
        yield "differences", "Differences", lead, headed, ()
        groups = [(title, [plot for plot in plots if plot.key not in clearest]) for title, plots in groups]
    lead = "When metrics change: an interval of steps for each event, the earliest onset first."
    findings = "findings", "Findings", lead, [("", filter(None, starmap(event_plot, material.findings.items())))], ()
    lead = (
        "Every number of every checkpoint. Solid and filled: train; dashed and hollow: test; dotted: at collapse; "
        "shaded: 95 % intervals."
    )
    metrics = "metrics", "Metrics", lead, groups, notes
    yield from (findings, metrics) if material.has_groups else (metrics, findings)
    lead = "Cosines between the directions of classes, at the checkpoint of the slider."
    yield "cosines", "Class means and classifier", lead, *_by_group(matrix_plots, material)
    lead = "Eigenvalues of each Gram matrix divided by its size: at the checkpoint of the slider, and over the run."
    yield "spectra", "Spectra", lead, *_by_group(spectrum_plots, material)
    tables, notes = class_table(material.runs)
    yield "classes", "Classes", "Numbers of each class. Click a heading to sort.", [("", tables)], notes
    layers = [
        ("By layer and checkpoint", layer_maps(material.runs)),
        ("Similarity of layers", similarity_plots(material.similar)),
        ("Separation by depth", separation_plots(material.runs)),
    ]
    lead = "Layers of every checkpoint: metrics by layer and step, similarity of layers, separation of classes."
    yield "layers", "Layers", lead, layers, material.missing
    lead = "Which rows were learned when and forgotten how often, and how much the predictions of networks differ."
    yield "examples", "Examples", lead, *_examples(material, axis)
    lead = "What the files of the checkpoints say by themselves: the audit, the motion and the spectra of the weights."
    yield "weights", "Weights", lead, _weight_groups(material.weights), ()
    lead = "Loss and error between two checkpoints, and how far they rise above the chord: the barrier."
    yield "paths", "Paths", lead, path_plots(material.paths), _notes_on_paths(material.paths)
    planes = [(name, contour_plots(plane, f"plane-{name}")) for name, plane in material.planes.items()]
    yield "planes", "Planes", "The loss over a plane of weights, with the checkpoints in it.", planes, ()


def _groups(title: str, headed: Headed, folded: bool) -> tuple[Group, ...]:
    """Return the groups that have plots; if `folded`, one without a heading has the title of the section."""
    groups = (Group(heading or folded * title, tuple(plots), folded) for heading, plots in headed)
    return tuple(group for group in groups if group.plots)


def _weight_groups(weights: Mapping[str, WeightSurvey]) -> Headed:
    for name, contents in weights.items():
        plots = {
            "By block and checkpoint": block_maps(
                name, contents, "weights" if len(weights) == 1 else f"weights-{name}"
            ),
            "Trajectory": trajectory_plot(name, contents.network),
            "Spectra of weight matrices": spectrum_lines(name, contents),
        }
        for title, drawn in plots.items():
            yield title if len(weights) == 1 else f"{name}: {title.lower()}", drawn


def _examples(material: Material, axis: str) -> tuple[Headed, list[str]]:
    series = [each for run in material.predictions for each in run if len(each.members) > 1]
    described = {
        "By class": history_maps(series),
        "By example": worst_table(series, material.data, material.data_arguments),
        "From checkpoint to checkpoint": step_plots(series, axis),
        "Every two checkpoints": disagreement_maps(series),
        "Between runs": run_table(material.predictions),
    }
    notes = [note for _, notes in described.values() for note in notes]
    left_out = [reason for run in material.predictions for each in run for reason in each.left_out.values()]
    groups = [(title, plots) for title, (plots, _) in described.items()]
    return groups, [*material.without_predictions, *left_out, *notes]


def _by_group(
    describe: Callable[[Sequence[Run]], tuple[Sequence[Any], list[str]]], material: Material
) -> tuple[Headed, list[str]]:
    """Describe plots of each group of runs beside each other; those of all runs together without groups."""
    if not material.has_groups:
        plots, notes = describe(material.runs)
        return [("", plots)], notes
    described = {group: describe(members) for group, members in grouped(material.runs).items()}
    pairs = [
        replace(plot, key=f"{plot.key}-{group}", title=f"{plot.title}: {group}")
        for group, (plots, _) in described.items()
        for plot in plots
    ]
    # The plots of one matrix or spectrum follow each other.
    kinds = list(dict.fromkeys(plot.title.rpartition(": ")[0] for plot in pairs))
    pairs.sort(key=lambda plot: kinds.index(plot.title.rpartition(": ")[0]))
    return [("", pairs)], [note for _, notes in described.values() for note in notes]


def _notes_on_paths(paths: Mapping[str, PathContents]) -> Iterable[str]:
    if paths:
        yield "metrics along a path are in its points.jsonl; `plot` draws them"
    for name, path in paths.items():
        if not path.result:
            yield f"{name}: not finished; only its computed points are drawn"
