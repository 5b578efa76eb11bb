"""Contents of a report: sections with plots under headings, sentences, provenance, and the axis of the slider."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_probe.reporting.comparison import TOP, difference_table, grouped
from ckpt_probe.reporting.findings import event_plots
from ckpt_probe.reporting.material import Material, ReportOptions
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
from ckpt_probe.reporting.plots.metrics import metric_plots
from ckpt_probe.reporting.plots.paths import contour_plots, path_plots
from ckpt_probe.reporting.plots.portraits import class_table, matrix_plots, spectrum_plots
from ckpt_probe.reporting.provenance import Origin
from ckpt_probe.reporting.runs import Run
from ckpt_probe.reporting.sources import PathContents
from ckpt_probe.trajectories.rows import WeightSurvey

DIFFERENCES, FINDINGS = "differences", "findings"
"""Keys of the sections whose plots are open on a page that is drawn by group; all others are folded."""


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


def sections_of(contents: Material, axis: str, options: ReportOptions) -> Iterable[Section]:
    """Yield the sections of a report in order, also those without plots.

    Args:
        contents: Material of the report.
        axis: Quantity on the x axis of runs.
        options: Options of the report.
    """
    groups, notes = metric_plots(contents.runs, axis)
    if compared := contents.differences:
        clearest = [f"metric-{name}" for name in list(dict.fromkeys(each.metric for each in compared))[:TOP]]
        plots = {plot.key: plot for _, of_group in groups for plot in of_group}
        yield _section(
            DIFFERENCES,
            "Differences",
            "How the groups differ at the end, the most clearly separated metrics first: mean and range over seeds.",
            [("", [difference_table(compared)]), ("", [plots[key] for key in clearest if key in plots])],
        )
        groups = [(title, [plot for plot in plots if plot.key not in clearest]) for title, plots in groups]
    findings = _section(
        FINDINGS,
        "Findings",
        "When metrics change: an interval of steps for each event, the earliest onset first.",
        [("", event_plots(contents.findings))],
    )
    metrics = _section(
        "metrics",
        "Metrics",
        "Every number of every checkpoint. Solid and filled: train; dashed and hollow: test; dotted: at "
        "collapse; shaded: 95 % intervals.",
        groups,
        notes,
    )
    yield from (findings, metrics) if contents.has_groups else (metrics, findings)
    matrices, notes = _by_group(matrix_plots, contents)
    lead = "Cosines between the directions of classes, at the checkpoint of the slider."
    yield _section("cosines", "Class means and classifier", lead, [("", matrices)], notes)
    spectra, notes = _by_group(spectrum_plots, contents)
    lead = "Eigenvalues of each Gram matrix divided by its size: at the checkpoint of the slider, and over the run."
    yield _section("spectra", "Spectra", lead, [("", spectra)], notes)
    table, notes = class_table(contents.runs)
    yield _section("classes", "Classes", "Numbers of each class. Click a heading to sort.", [("", [table])], notes)
    layers = [
        ("By layer and checkpoint", layer_maps(contents.runs)),
        ("Similarity of layers", similarity_plots(contents.similar)),
        ("Separation by depth", separation_plots(contents.runs)),
    ]
    lead = "Layers of every checkpoint: metrics by layer and step, similarity of layers, separation of classes."
    yield _section("layers", "Layers", lead, layers, contents.missing)
    yield _examples(contents, axis, options)
    lead = "What the files of the checkpoints say by themselves: the audit, the motion and the spectra of the weights."
    yield _section("weights", "Weights", lead, _weight_groups(contents.weights))
    lead = "Loss and error between two checkpoints, and how far they rise above the chord: the barrier."
    yield _section("paths", "Paths", lead, path_plots(contents.paths), _notes_on_paths(contents.paths))
    planes = [(name, contour_plots(plane, f"plane-{name}")) for name, plane in contents.planes.items()]
    yield _section("planes", "Planes", "The loss over a plane of weights, with the checkpoints in it.", planes)


def folded(section: Section) -> Section:
    """Return a section whose plots are hidden until they are asked for."""
    groups = (replace(group, title=group.title or section.title, folded=True) for group in section.groups)
    return replace(section, groups=tuple(groups))


def _section(
    key: str, title: str, lead: str, groups: Iterable[tuple[str, Iterable[Plot | None]]], notes: Iterable[str] = ()
) -> Section:
    """Return a section of those groups that have plots."""
    drawn = ((heading, tuple(plot for plot in plots if plot is not None)) for heading, plots in groups)
    return Section(key, title, lead, tuple(Group(heading, plots) for heading, plots in drawn if plots), tuple(notes))


def _weight_groups(weights: Mapping[str, WeightSurvey]) -> Iterable[tuple[str, Sequence[Plot | None]]]:
    for name, contents in weights.items():
        plots = {
            "By block and checkpoint": block_maps(
                name, contents, "weights" if len(weights) == 1 else f"weights-{name}"
            ),
            "Trajectory": [trajectory_plot(name, contents.network)],
            "Spectra of weight matrices": spectrum_lines(name, contents),
        }
        for title, drawn in plots.items():
            yield title if len(weights) == 1 else f"{name}: {title.lower()}", drawn


def _examples(contents: Material, axis: str, options: ReportOptions) -> Section:
    series = [each for run in contents.predictions for each in run if len(each.members) > 1]
    left_out = [reason for run in contents.predictions for each in run for reason in each.left_out.values()]
    pairs, notes_on_pairs = run_table(contents.predictions)
    worst, notes_on_samples = worst_table(series, options.data, options.data_arguments)
    by_class, notes_on_classes = history_maps(series)
    steps, notes_on_steps = step_plots(series, axis)
    matrices, notes_on_matrices = disagreement_maps(series)
    groups = [
        ("By class", by_class),
        ("By example", [worst]),
        ("From checkpoint to checkpoint", steps),
        ("Every two checkpoints", matrices),
        ("Between runs", [pairs]),
    ]
    notes = (*left_out, *notes_on_classes, *notes_on_samples, *notes_on_steps, *notes_on_matrices, *notes_on_pairs)
    lead = "Which rows were learned when and forgotten how often, and how much the predictions of networks differ."
    return _section("examples", "Examples", lead, groups, (*contents.without_predictions, *notes))


def _by_group(describe: Callable[[Sequence[Run]], tuple[list[Any], list[str]]], contents: Material) -> Any:
    """Describe plots of each group of runs beside each other; those of all runs together without groups."""
    if not contents.has_groups:
        return describe(contents.runs)
    described = {group: describe(members) for group, members in grouped(contents.runs).items()}
    pairs = [
        replace(plot, key=f"{plot.key}-{group}", title=f"{plot.title}: {group}")
        for group, (plots, _) in described.items()
        for plot in plots
    ]
    # The plots of one matrix or spectrum follow each other.
    kinds = list(dict.fromkeys(plot.title.rpartition(": ")[0] for plot in pairs))
    pairs.sort(key=lambda plot: kinds.index(plot.title.rpartition(": ")[0]))
    return pairs, [note for _, notes in described.values() for note in notes]


def _notes_on_paths(paths: Mapping[str, PathContents]) -> Iterable[str]:
    if paths:
        yield "metrics along a path are in its points.jsonl; `plot` draws them"
    for name, path in paths.items():
        if not path.result:
            yield f"{name}: not finished; only its computed points are drawn"
